"""Which names look like those of secrets.

Apart because it is a list of words, chosen with care: a password that is shown cannot be taken back, and a
`max_tokens` that is hidden makes a run useless. Where both could be meant, it is taken for a secret.
"""

from __future__ import annotations

import functools
import itertools
import re

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")


def _words(text: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(text)]


_SECRETS = frozenset(
    _words(
        "password passwords passwd passphrase passcode pwd secret secrets credential credentials authorization jwt "
        "apikey apikeys apitoken accesskey accesstoken authtoken privatekey secretkey"
    )
)
"""Words that make a name that of a secret, wherever they stand in it."""
_OPENING = frozenset(
    _words(
        "access account api auth authentication decryption deploy encryption license licence master private root "
        "secret signing ssh storage subscription"
    )
)
"""What a key is of that opens something. Other keys sort, join, seed, or are attended to."""
_GRANTING = frozenset(_words("access api auth authentication bearer id oauth refresh session"))
"""What tokens are of, even several, that let somebody in."""
_OF_TEXT = frozenset(
    _words(
        "additional assistant audio avg begin begins beginning blank bos box call class cls completion concept "
        "context cost decoder delimiter each encoder end eos eot every extra fim first image img initializer input "
        "instance label lang language last mask masked max mean min n new newline next null num number oov output "
        "pad padding per placeholder prefix price prompt rare response sep separator sos source special start stop "
        "sub subword suffix system target text think thinking tool total trigger unk unknown video vision word"
    )
)
"""What a token is of, or is counted by, in a text."""
_ABOUT = frozenset(
    _words(
        "algorithm algo bits class column cols count dim dims dir directory enabled env expiry field file filename "
        "format host kind len length limit manager name names number path policy provider required rotation scope "
        "scopes size store template ttl type uri url variable version"
    )
)
"""Last words of names that say something about a secret, and do not hold it."""


@functools.lru_cache(10_000)
def names_a_secret(name: str) -> bool:
    """Whether what has this name is likely to be a secret.

    Args:
        name: Of a param or a tag, with `/` or `.` between its parts.

    >>> [names_a_secret(name) for name in ("api_key", "auth/token", "AWS_SECRET_ACCESS_KEY", "hfToken")]
    [True, True, True, True]
    >>> [names_a_secret(name) for name in ("max_tokens", "eos_token", "tokenizer", "key_size", "keyboard")]
    [False, False, False, False, False]
    """
    words = _words(name)
    if not words or words[-1] in _ABOUT:
        return False
    if not _SECRETS.isdisjoint(words):
        return True
    for word, following in itertools.pairwise(words):
        if (following in ("key", "keys") and word in _OPENING) or (
            following in ("token", "tokens") and word in _GRANTING
        ):
            return True
    # A plural counts what is in a text: max_tokens. What stands before it in the same part of the name tells.
    return words[-1] == "token" and _OF_TEXT.isdisjoint(_words(re.split(r"[/.]", name.rstrip("/."))[-1]))
