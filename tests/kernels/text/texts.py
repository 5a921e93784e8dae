"""Difficult captions for the tests of the text kernels."""

from __future__ import annotations

import random
from html.entities import html5

from danqing.engine.stages.simplified import simplified_words

DIFFICULT_TEXTS = [
    "",
    " ",
    "一只橘猫趴在窗台上晒太阳",
    "南京市长江大桥 iPhone 15 Pro，256GB！3.5%折扣 C++ AT&T 50%off v2.0.1",
    "他来到了网易杭研大厦，小明硕士毕业于中国科学院计算所",
    "。。。！！？？——……",
    "\r\n一行\n两行\r三行\t制表\u3000全角\u00a0不断",
    "😀好看😀👨‍👩‍👧‍👦家庭🇨🇳国旗1️⃣键帽❤️红心©️®™",
    "ＡＢＣ１２３全角，半角abc123",
    "漢字與電腦軟體的簡體轉換",
    "café naïve Ångström ﬁn Straße ΑΒΓ Привет",
    "これは日本語のテキストです 東京タワー",
    "공원에서 찍은 사진입니다",
    "مرحبا بالعالم שלום",
    "\u202e反向文字\u202c \u200b零宽\ufeff",
    "e\u0301" * 30 + "Z\u0351\u036f\u0300" * 20,
    "𠮷野家𪚥字𝒜𝓑",
    "⼤树⻓城\uf90a\U0002f8fc\ufacf",
    "a" * 300,
    "哈" * 500,
    "好吃" * 200,
    "1234567890" * 20,
    "...5%..5a.5.5.5%%a.b.c",
    "+#&._%-+#&._%-",
    "的一是不了在人有我他这" * 10,
    "\x00\x01\x7f控制\x85字符",
]


def random_texts(count: int, seed: int = 0) -> list[str]:
    """Makes strings of characters of many kinds, mostly Han, with words and sequences of single characters."""
    chance = random.Random(seed)
    common = "的一是在不了有和人这中大为上个国我以要他时来用们生到作地于出就分对成会可主发年动同工也能下过"
    pools = [
        common,
        common,
        "".join(map(chr, range(0x4E00, 0x9FD6))),
        "abcXYZ019 .%+#&_-",
        " \n\r\t，。！？、：“”《》",
        "".join(map(chr, range(0x3040, 0x3100))),
        "😀👍❤️🇨🇳é\u0301\u200d\ufeff𠮷",
    ]
    return ["".join(chance.choice(chance.choice(pools)) for _ in range(chance.randint(0, 60))) for _ in range(count)]


_MARKUP = (
    # parts of tags
    *("<", "<", "</", ">", ">", "/>", "/", "=", '"', "'", "<!--", "<!-", "-->", "<script", "<SCRIPT", "</script"),
    *("</Script>", "<style", "</style>", "<style>", "<script>", "script", "p", "br", "b", "h1", "h7", "H3", "header"),
    *("head", "<a ", "</a>", "<img ", "<b>", "</b>", "<br/>", "<p>", "ſcript", "<\u212abd>", "<公园>", "a", "data-x"),
    *("xml:lang", "_", ":", "-", "class=", "a='1'", 'a="b"', "a=b", " ", " ", "\t", "\n", "\xa0", "\x1c", "\u3000"),
    # parts of entities
    *("&", "&", "&#", "#", "x", "X", ";", "amp", "amp;", "&amp;", "&lt;", "&lt", "lt;", "&gt;", "&quot;", "&nbsp;"),
    *("&#39;", "&#x27;", "0", "1", "9", "55", "&#128;", "&#x80", "xD800", "&#55296;", "1114112", "110000", "9" * 20),
    *("fffe", "&#xfdd0;", "&#65535;", "&#11;", "&#13;", "&notit;", "&notin;", "&nGt;", "&copycat", "&hellip"),
    # other text
    *("中", "漢", "沈", "醉", "é", "⼤", "⻓", "😀", "❤️", "１", "Ａ", "1️⃣", "\u200b", "駅"),
)


def random_markup(count: int, seed: int = 0) -> list[str]:
    """Makes strings of parts of tags and entities."""
    chance, names = random.Random(seed), sorted(html5)
    return [
        "".join(
            chance.choice(_MARKUP) if chance.random() < 0.95 else f"&{chance.choice(names)}"
            for _ in range(chance.randint(1, 14))
        )
        for _ in range(count)
    ]


def random_words(count: int, seed: int = 0) -> list[str]:
    """Makes strings of characters and phrases of OpenCC's dictionaries, of their parts, and of what they become."""
    chance, words = random.Random(seed), simplified_words()
    pools = [
        [word for word in words if len(word) > 1],
        list(words),
        list(words.values()),
        list("的一是不在人有我，a1 "),
    ]
    texts = []
    for _ in range(count):
        parts = [chance.choice(chance.choice(pools)) for _ in range(chance.randint(1, 12))]
        texts.append("".join(part[: chance.randint(1, len(part))] if chance.random() < 0.2 else part for part in parts))
    return texts
