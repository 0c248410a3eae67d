"""nginx text, safely: arguments that know their sink (`arguments`),
a strict reader of what was written (`strict`), tenant regexes (`regex`)."""
