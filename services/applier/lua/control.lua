require("sluice.control").serve()
