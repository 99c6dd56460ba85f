"""Attribution: which word, or which input, causes what is drawn; a method a file."""
