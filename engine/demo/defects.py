"""The defects that the demo crawl plants: one function a kind, each named with the criterion that should catch it."""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import opencc
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from danqing.trt_models.model_set import ModelSet

CLEAN, MISMATCH = "clean", "mismatched caption"


@dataclass(frozen=True)
class Pair:
    """One pair of the crawl. `photo` names the photograph it was made from, `kind` what was done to it."""

    photo: str
    image: bytes
    caption: str
    url: str
    kind: str = CLEAN
    expected: str | None = None
    extension: str = "jpg"
    metadata: dict[str, Any] = field(default_factory=dict)


Defect = Callable[[Pair, dict[str, Any], random.Random], Pair]
DEFECTS: dict[str, tuple[str, Defect]] = {}
"""Kind → the criterion that should drop it, and the function that plants it (pair, photo's record, chance)."""


def plants(kind: str, expected: str) -> Callable[[Defect], Defect]:
    def register(function: Defect) -> Defect:
        DEFECTS[kind] = (expected, function)
        return function

    return register


# ── captions ──


@plants("unsafe words", "unsafe_text")
def _(pair: Pair, photo: dict[str, Any], chance: random.Random) -> Pair:
    # Drawn from the installed word list, so that this file need not spell such words out.
    terms = unsafe_terms()
    middle = len(pair.caption) // 2
    return replace(pair, caption=pair.caption[:middle] + chance.choice(terms) + pair.caption[middle:])


@cache
def unsafe_terms() -> list[str]:
    weights = ModelSet({"text_safety": "jionlp-pornography"}).terms("text_safety")
    return sorted(term for term, weight in weights.items() if weight >= 1 and 3 <= len(term) <= 8)


@plants("blocked domain", "blocked_source")
def _(pair: Pair, photo: dict[str, Any], chance: random.Random) -> Pair:
    host = chance.choice(("pirated-pictures.example", "cdn7.pirated-pictures.example", "img.link-farm.example"))
    return replace(pair, url=f"https://{host}/{pair.photo}.jpg")


@plants("too short", "words")
def _(pair: Pair, photo: dict[str, Any], chance: random.Random) -> Pair:
    return replace(pair, caption=chance.choice(("图片", "风景照片", "好看的图", "IMG_2041", "封面 大图", "第3张图片")))


@plants("too long", "words")
def _(pair: Pair, photo: dict[str, Any], chance: random.Random) -> Pair:
    return replace(pair, caption="，".join([*photo["captions"], *photo["captions"][::-1]] * 3))


@plants("emoji spam", "words")
def _(pair: Pair, photo: dict[str, Any], chance: random.Random) -> Pair:
    emoji = chance.choices("😀😍🔥💯🎉✨👍🏽❤️🇨🇳🌈🚀🍀", k=18)
    return replace(pair, caption=f"美图{''.join(emoji)}来了")


@plants("picture missing", "downloaded")
def _(pair: Pair, photo: dict[str, Any], chance: random.Random) -> Pair:
    return replace(pair, image=b"")


@plants("English", "chinese_confidence")
def _(pair: Pair, photo: dict[str, Any], chance: random.Random) -> Pair:
    return replace(pair, caption=photo["english"])


@plants("Japanese", "chinese_confidence")
def _(pair: Pair, photo: dict[str, Any], chance: random.Random) -> Pair:
    place = chance.choice(("公園", "海辺", "庭", "駅前", "山道", "台所"))
    when = chance.choice(("朝", "夕方", "昨日", "先週末", "春の日"))
    return replace(pair, caption=f"これは{when}に{place}で撮ったお気に入りの写真です。とてもきれいでした。")


@plants("stop words only", "stop_word_share")
def _(pair: Pair, photo: dict[str, Any], chance: random.Random) -> Pair:
    words = ["这个", "就是", "那么", "因为", "所以", "我们", "你们", "什么", "怎么", "如果", "但是", "而且", "还是"]
    return replace(pair, caption="，".join(chance.sample(words, 8)))


@plants("no noun", "nouns")
def _(pair: Pair, photo: dict[str, Any], chance: random.Random) -> Pair:
    words = [
        "奔跑",
        "喜欢",
        "热闹",
        "跳跃",
        "明亮",
        "轻轻",
        "遥远",
        "欢笑",
        "等待",
        "干净",
        "仰望",
        "凝视",
        "行走",
        "闪烁",
    ]
    return replace(pair, caption="，".join(chance.sample(words, 8)))


@plants("rare characters", "unknown_tokens")
def _(pair: Pair, photo: dict[str, Any], chance: random.Random) -> Pair:
    rare = [chr(chance.randrange(0x20000, 0x2A6D0)) for _ in range(8)]
    return replace(pair, caption=pair.caption + "，附录字表：" + "、".join(rare))


@plants("repeated token", "text_entropy")
def _(pair: Pair, photo: dict[str, Any], chance: random.Random) -> Pair:
    return replace(
        pair, caption=" ".join([chance.choice(("图片", "照片", "风景", "壁纸", "花朵"))] * chance.randint(6, 20))
    )


@plants("advert", "unsafe_caption")
def _(pair: Pair, photo: dict[str, Any], chance: random.Random) -> Pair:
    pitch = chance.choice(
        (
            "本店专业代理各种发票，代开发票请加扣扣，款到发货",
            "诚招兼职，网络工作在家日赚三百，有意者加QQ咨询",
            "无抵押贷款当天放款，信用卡提现，请点击进入了解",
            "免费索取样品，详情请进入微店联系客服下单",
            "连锁加盟低价出售，免费订购热线全天开通",
        )
    )
    return replace(pair, caption=f"{pair.caption[:12]}，{pitch}")


@plants("contact details", "unsafe_caption")
def _(pair: Pair, photo: dict[str, Any], chance: random.Random) -> Pair:
    number = chance.randrange(10**8, 10**9)
    ways = (f"，原图购买加微信 pic{number}", f"，拍摄预约电话13{number}", f"，高清原图联系QQ：{number}")
    return replace(pair, caption=pair.caption + chance.choice(ways))


# ── pictures ──


def _open(pair: Pair) -> Image.Image:
    return Image.open(io.BytesIO(pair.image)).convert("RGB")


def _with(pair: Pair, picture: Image.Image, quality: int = 90) -> Pair:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return replace(pair, image=buffer.getvalue())


@plants("not a picture", "readable")
def _(pair: Pair, photo: dict[str, Any], chance: random.Random) -> Pair:
    pages = (b"<!DOCTYPE html><html><title>404 Not Found</title></html>", b"%PDF-1.7\n%\xe2\xe3", b"PK\x03\x04\x14\x00")
    return replace(pair, image=chance.choice(pages))


@plants("wrong aspect", "aspect_ratio")
def _(pair: Pair, photo: dict[str, Any], chance: random.Random) -> Pair:
    picture = _open(pair)
    strip = picture.crop((0, 0, picture.width, max(picture.width // 4, 1)))
    return _with(pair, strip if chance.random() < 0.5 else strip.rotate(90, expand=True))


@plants("tiny", "shortest_edge")
def _(pair: Pair, photo: dict[str, Any], chance: random.Random) -> Pair:
    return _with(pair, ImageOps.contain(_open(pair), (100, 100)))


@plants("truncated", "decodable")
def _(pair: Pair, photo: dict[str, Any], chance: random.Random) -> Pair:
    return replace(pair, image=pair.image[: int(len(pair.image) * chance.uniform(0.3, 0.8))])


@plants("flat", "pixel_std")
def _(pair: Pair, photo: dict[str, Any], chance: random.Random) -> Pair:
    colour = tuple(chance.randrange(256) for _ in range(3))
    return _with(pair, Image.new("RGB", _open(pair).size, colour))


@plants("blurred", "laplacian_variance")
def _(pair: Pair, photo: dict[str, Any], chance: random.Random) -> Pair:
    return _with(pair, _open(pair).filter(ImageFilter.GaussianBlur(chance.uniform(3, 6))))


@plants("low entropy", "image_entropy")
def _(pair: Pair, photo: dict[str, Any], chance: random.Random) -> Pair:
    buffer = io.BytesIO()
    _open(pair).convert("1").save(buffer, "PNG")  # dithered black and white: sharp, full contrast, one bit a pixel
    return replace(pair, image=buffer.getvalue(), extension="png")


@plants("exact duplicate", "redundancy")
def _(pair: Pair, photo: dict[str, Any], chance: random.Random) -> Pair:
    return replace(pair, caption=photo["captions"][1])


@plants("near duplicate", "redundancy")
def _(pair: Pair, photo: dict[str, Any], chance: random.Random) -> Pair:
    picture = _open(pair)
    width, height = picture.size
    how = chance.randrange(4)
    if how == 0:
        return replace(_with(pair, picture, quality=55), caption=photo["captions"][1])
    if how == 1:
        picture = picture.resize((width * 9 // 10, height * 9 // 10), Image.Resampling.LANCZOS)
    elif how == 2:
        picture = picture.crop((width // 50, height // 50, width - width // 50, height - height // 50))
    else:
        picture = ImageEnhance.Brightness(picture).enhance(1.06)
    return replace(_with(pair, picture), caption=photo["captions"][1])


# ── no defects, though they look like it ──


def harmless(pair: Pair, position: int) -> Pair:
    """Every seventh clean caption comes in Traditional characters, every next one decorated; both must be kept."""
    if position % 7 == 0:
        return replace(pair, caption=opencc.OpenCC("s2t").convert(pair.caption), metadata={"script": "traditional"})
    if position % 7 == 1:
        return replace(pair, caption=f"✨{pair.caption}❤️👍🏽", metadata={"script": "decorated"})
    return pair


def kinds() -> Iterator[tuple[str, str]]:
    return ((kind, expected) for kind, (expected, _) in DEFECTS.items())
