"Networks and the files that they come in."
