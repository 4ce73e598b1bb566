"""Fine-tuning an encoder: pairs, hard negatives, losses, and a trainer that goes on where it was stopped."""
