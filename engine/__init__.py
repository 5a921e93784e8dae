"""The phases SELECT, SCORE, DECIDE and WRITE, and what they share."""
