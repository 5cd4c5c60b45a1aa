"Configurations, the command line, the playground."
