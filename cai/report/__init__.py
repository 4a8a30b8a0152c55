"""The report of a run as a page to open and as a summary for a change request, beside the one in the terminal."""
