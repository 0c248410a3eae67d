require("sluice.balancing").balance()
