"""The app: a page in the browser where words are seen and changed."""
