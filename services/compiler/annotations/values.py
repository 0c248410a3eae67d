"""How annotation values are read: text in, typed value out, TextError (with what a good value looks like) otherwise."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import urlsplit

from services.compiler.configvalues import interceptable
from services.shared.nginxtext.arguments import TextError, canonical_cidr, fullmatch, size_bytes
from services.shared.nginxtext.regex import check_regex


def matching(pattern: str, good: str, limit: int = 2048) -> Callable[[str], str]:
    """Text of a closed shape."""

    def parse(text: str) -> str:
        if len(text) > limit or not fullmatch(pattern, text):
            raise TextError(good)
        return text

    return parse


basic = matching(r"[A-Za-z0-9._~/:-]+", "letters, digits and - . _ ~ / :")
path = matching(r"/?[A-Za-z0-9._~/:$-]*", "a path such as /app or /$1")
redirect_path = matching(r"/[A-Za-z0-9._~/:-]*", "an absolute path such as /login")
prefix_path = matching(r"/?[A-Za-z0-9._~/:$-]*", "a path such as /api or /$1")
redirect_url = matching(r"[A-Za-z0-9._~/:,?&=-]+", "a URL of letters, digits and - . _ ~ / : , ? & =")
server_name = matching(r"[A-Za-z0-9._~/:$^*+?()\[\]|{}\\-]+", "a host name such as backend.internal")
template = matching(r"[A-Za-z0-9_${}-]+", "variables such as $request_uri or ${remote_addr}")
realm = matching(r"[A-Za-z0-9._~/: -]+", "letters, digits, spaces and - . _ ~ / :")
header_list = matching(r"[A-Za-z0-9_, -]+", "header names separated by commas")
expose_list = matching(r"(\*|[A-Za-z0-9_, -]+)", "header names separated by commas, or *")
methods = matching(r"([A-Za-z]+,? ?)+", "methods separated by commas, such as GET, PUT")
cookie_name = matching(r"[A-Za-z0-9._~/:-]{1,128}", "a cookie name of letters, digits and - . _ ~ / :")
service_name = matching(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?", "the name of a Service in this namespace")
parameter_name = matching(r"[A-Za-z0-9_.~-]{1,64}", "a parameter name such as rd")
dns_or_path = matching(r"[A-Za-z0-9._~/:,?&=%+#@-]+", "a URL path")


def cookie_label(text: str) -> str:
    """A cookie name that nginx can look up as `$cookie_<name>` and that is a legal token."""
    if not fullmatch(r"[A-Za-z0-9._~-]{1,128}", text):
        raise TextError("a cookie name of letters, digits and - . _ ~")
    return text


def auth_realm(text: str) -> str:
    """nginx reads the realm `off` as "no authentication": that one is never a realm."""
    if text == "off":
        raise TextError("a realm other than off, which would switch the authentication off")
    return realm(text)


def size(text: str) -> str:
    if text[-1:] in "bB" and text[:-1].isdigit():
        text = text[:-1]
    size_bytes(text)
    return text


def number(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not fullmatch(r"-?[0-9]{1,10}", text) or not low <= int(text) <= high:
            raise TextError(f"a number from {low} to {high}")
        return int(text)

    return parse


seconds = number(1, 10**8)


def one_of(*allowed: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in allowed:
            raise TextError("one of " + ", ".join(allowed))
        return text

    return parse


http_method = one_of("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "CONNECT", "OPTIONS", "TRACE")


def protocol(text: str) -> str:
    """Case and surrounding blanks do not count."""
    word = text.strip().upper()
    if word not in ("HTTP", "HTTPS", "GRPC", "GRPCS"):
        raise TextError("one of HTTP, HTTPS, GRPC, GRPCS")
    return word


def cidrs(text: str) -> tuple[str, ...]:
    found = tuple(sorted({canonical_cidr(part.strip()) for part in text.split(",") if part.strip()}))
    if not found:
        raise TextError("addresses or networks separated by commas, such as 10.0.0.0/8")
    return found


def status_codes(text: str) -> tuple[int, ...]:
    parse = number(400, 599)
    codes = {parse(part.strip()) for part in text.split(",") if part.strip()}
    if not all(map(interceptable, codes)):
        raise TextError("statuses that nginx can intercept (499 is its word for clients that went away)")
    return tuple(sorted(codes))


def code_between(low: int, high: int, default: int) -> Callable[[str], int]:
    """A number; outside the range the default, as ingress-nginx does."""

    def parse(text: str) -> int:
        if not fullmatch(r"-?[0-9]{1,10}", text):
            raise TextError(f"a status from {low} to {high}")
        return int(text) if low <= int(text) <= high else default

    return parse


def auth_url(text: str) -> str:
    """A URL with scheme and host; request variables are possible."""
    if not fullmatch(r"https?://[A-Za-z0-9._~/:,?&=%+#@$!*'();{}\[\] -]+", text) or len(text) > 4000 or " " in text:
        raise TextError("a URL with scheme and host")
    try:
        host = urlsplit(text.replace("{", "").replace("}", "")).netloc.rsplit("@", 1)[-1]
    except ValueError:
        raise TextError("a URL with scheme and host") from None
    if not host or ".." in host or "@" in text.split("/", 3)[2]:
        raise TextError("a URL with scheme and host, without user information")
    return text


def signin_url(text: str) -> str:
    if not fullmatch(r"[A-Za-z0-9._~/:,?&=%+#@$!*'();{}\[\]-]+", text) or len(text) > 4000:
        raise TextError("a URL; request variables such as $host are possible")
    return text


def header_names(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not all(fullmatch(r"[A-Za-z0-9_-]{1,128}", n) for n in names):
        raise TextError("header names separated by commas, such as X-User,X-Groups")
    return names


def origins(text: str) -> tuple[str, ...]:
    """`*`, `null`, or scheme://host[:port]; the host may begin with one `*.` label."""
    found = tuple(part.strip() for part in text.split(",") if part.strip())
    if not all(fullmatch(r"\*|null|([a-z][a-z0-9+.-]*://)?(\*\.)?[A-Za-z0-9.-]+(:[0-9]{1,5})?", o) for o in found) or not found:
        raise TextError("origins such as https://app.example.com, separated by commas")
    return found


def pattern(text: str) -> str:
    check_regex(text)
    return text


def aliases(text: str) -> tuple[str, ...]:
    found = sorted({part.strip() for part in text.split(",") if part.strip()})
    for item in found:
        if item.startswith("~"):
            check_regex(item.lstrip("~*"))
        elif not fullmatch(r"(\*\.)?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*(\.\*)?|\.[A-Za-z0-9_.-]+", item) or len(item) > 253:
            raise TextError("host names, *.suffix or ~regex, separated by commas")
    return tuple(found)


def snippet(text: str) -> str:
    """Complete directives; whether they mean anything is for nginx to say."""
    from services.shared.nginxtext.strict import check_snippet

    check_snippet(text)
    return text
