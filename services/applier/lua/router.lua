require("sluice.router").route()
