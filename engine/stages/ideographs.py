"""Han characters of Unicode that stand for others, and those that only Japanese uses."""

from __future__ import annotations

import unicodedata

COMPATIBILITY = ((0x2E80, 0x2FD5), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F))
"""First and last code points: radicals of dictionaries (Kangxi and supplement) and compatibility ideographs.

Texts extracted from PDF files have them in place of the ideographs that they look like.
"""

_RADICALS = (
    "⺁厂⺂乛⺃乚⺄乙⺅亻⺆冂⺇𠘨⺈刀⺉刂⺊卜⺋㔾⺌小⺍小⺎兀⺏尣⺐尢⺑𡯂⺒巳⺓幺⺔彑⺕彐⺖忄⺗心⺘扌⺙攵⺛旡⺜日⺝月"
    "⺞歺⺟母⺠民⺡氵⺢氺⺣灬⺤爫⺥爫⺦丬⺧牛⺨犭⺩王⺪𤴔⺫目⺬示⺭礻⺮𥫗⺯糹⺰纟⺱罓⺲罒⺳㓁⺴冗⺵𦉫⺶羊⺷𦍌⺸𦍋⺹耂"
    "⺺肀⺻聿⺼肉⺽𦥑⺾艹⺿艹⻀艹⻁虎⻂衤⻃覀⻄西⻅见⻆角⻇𧢲⻈讠⻉贝⻊𧾷⻋车⻌辶⻍辶⻎辶⻏邑⻐钅⻑長⻒镸⻓长⻔门⻕𨸏"
    "⻖阝⻗雨⻘青⻙韦⻚页⻛风⻜飞⻝食⻞𩙿⻟飠⻠饣⻡𩠐⻢马⻣骨⻤鬼⻥鱼⻦鸟⻧卤⻨麦⻩黄⻪黾⻫斉⻬齐⻭歯⻮齿⻯竜⻰龙⻱龜"
    "⻲亀⻳龟"
)
"""Radicals of the supplement and their ideographs, in turn: EquivalentUnifiedIdeograph.txt of Unicode 14.

NFKC has two of them.
"""

JAPANESE = frozenset(
    "両乗亀亜仏仮価値倹児円処剣剤剰労効勅勧勲単厳収呉唖営団囲図圏圧塁塩増壊壌売変奨姉姫嬢実寛対専尭巌巣巻帯帰庁広廃弾"
    "従徳徴応恵悩悪懐戦戯戸戻払抜択拝拠拡挙挿捜掲掻揺摂撃撹斉斎晩暁暦曁曽栄桜桝桟検楡楽様権歓歩歯歳歴毎気氷汚沢浄涙渇"
    "済渉渋渓満滝瀬焼犠猟獣畳発県砕稲穂穏穣竜粋粛経絵継続総縁縄縦繊繋聡聴脳臓舎舗茘蔵薫薬蛍覇覚覧観訳読譲賛転軽輌辺逓"
    "遅郷酔醗醸釈鉄鉱銭鋳錬関闘陥険隠隣雑霊頼顕駅駆騒験髄髪鴎鶏黒黙齢働込枠"
)
"""Characters that Japanese texts have and Chinese ones, Simplified or Traditional, do not.

Simplified characters of Japanese (shinjitai, OpenCC's dictionary JPShinjitaiCharacters) that neither GB 2312 nor Big5
encodes and that OpenCC does not know as Traditional ones, and of Japan's own characters 働, 込 and 枠. Left out are
those that Chinese texts use as variants (荘, 呪, 粧, 皐, 艶 …), and Japan's own ones that names have (辻, 畑 …).
13 of 148,578 lines of Chinese manuals and books have one of these, in quoted poems mostly.
"""


def unified_forms() -> dict[str, str]:
    """Returns the ideograph of each `COMPATIBILITY` character that has one."""
    forms = dict(zip(_RADICALS[::2], _RADICALS[1::2], strict=True))
    for first, last in COMPATIBILITY:
        for character in map(chr, range(first, last + 1)):
            form = unicodedata.normalize("NFKC", character)
            if len(form) == 1 and form != character:
                forms.setdefault(character, form)
    return forms


def is_chinese_only(character: str) -> bool:
    """Whether Chinese character sets (GB 2312, Big5) have a Han character, but not the Japanese one (JIS X 0208)."""
    is_han = "\u3400" <= character <= "\u9fff"  # the sets have punctuation and letters with accents, too
    return (
        is_han
        and (_encodes("gb2312", character) or _encodes("big5", character))
        and not _encodes("shift_jis", character)
    )


def _encodes(encoding: str, character: str) -> bool:
    try:
        return bool(character.encode(encoding))
    except UnicodeEncodeError:
        return False
