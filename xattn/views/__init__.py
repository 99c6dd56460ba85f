"""Pictures of maps, edits and runs."""
