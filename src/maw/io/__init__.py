"""What reads and writes files for every other part: text in, whole files out. It uses `maw.errors` alone."""
