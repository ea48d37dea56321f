"""How fast a model runs here, how much memory it takes, and how near both are to what the machine can do."""
