"""The ground floor: imports nothing else of ours."""
