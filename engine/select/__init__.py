"""SELECT: rows of URL tables, before any download."""
