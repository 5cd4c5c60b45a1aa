"Grids, films and comparisons by eye."
