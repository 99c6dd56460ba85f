"""The verbs: record, edit and editing."""
