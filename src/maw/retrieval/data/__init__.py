"""Collections, queries and judgements: where they come from, how they are checked, and where their texts are kept."""
