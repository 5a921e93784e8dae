"""HTML in captions: a crawler that copies alt texts as they stand in the page leaves entities and tags in them."""

from __future__ import annotations

import html
import re

_INLINE = "a|abbr|b|bdi|bdo|big|cite|code|del|em|font|i|ins|kbd|mark|nobr|q|s|small|span|strike|strong|sub|sup|tt|u|wbr"
_BLOCK = (
    "address|article|aside|blockquote|body|br|button|center|dd|div|dl|dt|figcaption|figure|footer|form|h[1-6]|head|"
    "header|hr|html|iframe|img|input|label|li|link|main|meta|nav|object|ol|option|p|picture|pre|script|section|select|"
    "source|style|svg|table|tbody|td|textarea|tfoot|th|thead|title|tr|ul|video"
)
# A tag has the name of an element of HTML and attributes with values, so that `a < b`, `3<5`, `<公园>` and `<Windows>`
# stay. The quantifiers are possessive: the time is linear in the length.
_ATTRIBUTES = r"""(?:\s+[\w:-]+\s*+=\s*+(?:"[^"<]*+"|'[^'<]*+'|[^\s"'<>]++))*+\s*+/?>"""
_HIDDEN = re.compile(r"<(script|style)\b(?=[\s>])[^<>]*+>[^<]*+</\1\s*>|<!--[^<>]*+>", re.IGNORECASE)
_BLOCK_TAG = re.compile(rf"</?(?:{_BLOCK}){_ATTRIBUTES}", re.IGNORECASE)
_INLINE_TAG = re.compile(rf"</?(?:{_INLINE}){_ATTRIBUTES}", re.IGNORECASE)


def remove_markup(captions: list[str]) -> list[str]:
    """Decodes entities and removes tags; captions without `&` and `<` stay as they are.

    >>> remove_markup(["红色&nbsp;汽车", "<b>红</b>色<br/>汽车", "&amp;lt;p&amp;gt;小猫", "a < b, 3<5, <公园>"])
    ['红色\\xa0汽车', '红色 汽车', ' 小猫', 'a < b, 3<5, <公园>']
    """
    out = captions
    for row, caption in enumerate(captions):
        if "&" in caption or "<" in caption:
            if out is captions:
                out = list(captions)
            out[row] = _plain(caption)
    return out


def _plain(text: str) -> str:
    """Decodes the entities of a text, twice, since some pages escape what is escaped already; then removes tags.

    Comments, scripts and style sheets go with their content, tags of blocks and line breaks become a space, and tags
    within a line nothing.
    """
    text = html.unescape(html.unescape(text))
    if "<" not in text:
        return text
    return _INLINE_TAG.sub("", _BLOCK_TAG.sub(" ", _HIDDEN.sub(" ", text)))
