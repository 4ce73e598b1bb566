"""What `maw inspect` shows: an inspection as an HTML page, as PNG files, and in the terminal."""
