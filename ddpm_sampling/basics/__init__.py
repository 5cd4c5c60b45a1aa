"The ground floor: errors, whole files, estimates, recipes; what every room uses."
