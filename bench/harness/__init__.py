"""What every bench shares: timing in turns, rows and conditions, goals and tables, checks, made-up cells."""
