require("sluice.certificates").choose()
