"""The defects of the demo crawl: one function per kind, registered with the criterion that should drop the pair."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import opencc
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from danqing.engine.core.memory import DEFAULT_MAX_PIXELS
from danqing.engine.stages.opening import open_picture
from danqing.trt_models.model_set import ModelSet

CLEAN, MISMATCH = "clean", "mismatched caption"


@dataclass(frozen=True)
class Pair:
    """One pair of the crawl.

    Attributes:
        photo: file name of the photograph.
        image: the encoded picture.
        kind: the kind of defect, or `CLEAN`.
        expected: the criterion that should drop the pair; None for a clean pair.
        metadata: further fields of the pair's .json.
    """

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
"""Kind → the criterion that should drop it, and the function that makes it (pair, record of the photo, rng)."""


def defect(kind: str, expected: str) -> Callable[[Defect], Defect]:
    """Registers a function in `DEFECTS`."""

    def register(function: Defect) -> Defect:
        DEFECTS[kind] = (expected, function)
        return function

    return register


# ── captions ──


@defect("unsafe words", "unsafe_text")
def add_unsafe_term(pair: Pair, photo: dict[str, Any], rng: random.Random) -> Pair:
    # The terms come from the installed word list, so that this file does not contain them.
    terms = unsafe_terms()
    middle = len(pair.caption) // 2
    return replace(pair, caption=pair.caption[:middle] + rng.choice(terms) + pair.caption[middle:])


@cache
def unsafe_terms() -> list[str]:
    """Lists the unsafe terms of 3 to 8 characters."""
    weights = ModelSet({"text_safety": "jionlp-pornography"}).terms("text_safety")
    return sorted(term for term, weight in weights.items() if weight >= 1 and 3 <= len(term) <= 8)


@defect("blocked domain", "blocked_source")
def block_domain(pair: Pair, photo: dict[str, Any], rng: random.Random) -> Pair:
    host = rng.choice(("pirated-pictures.example", "cdn7.pirated-pictures.example", "img.link-farm.example"))
    return replace(pair, url=f"https://{host}/{pair.photo}.jpg")


@defect("too short", "words")
def shorten_caption(pair: Pair, photo: dict[str, Any], rng: random.Random) -> Pair:
    return replace(pair, caption=rng.choice(("图片", "风景照片", "好看的图", "IMG_2041", "封面 大图", "第3张图片")))


@defect("too long", "words")
def lengthen_caption(pair: Pair, photo: dict[str, Any], rng: random.Random) -> Pair:
    return replace(pair, caption="，".join([*photo["captions"], *photo["captions"][::-1]] * 3))


@defect("emoji spam", "words")
def fill_with_emoji(pair: Pair, photo: dict[str, Any], rng: random.Random) -> Pair:
    emoji = rng.choices("😀😍🔥💯🎉✨👍🏽❤️🇨🇳🌈🚀🍀", k=18)
    return replace(pair, caption=f"美图{''.join(emoji)}来了")


@defect("picture missing", "downloaded")
def remove_picture(pair: Pair, photo: dict[str, Any], rng: random.Random) -> Pair:
    return replace(pair, image=b"")


@defect("English", "chinese_confidence")
def caption_in_english(pair: Pair, photo: dict[str, Any], rng: random.Random) -> Pair:
    return replace(pair, caption=photo["english"])


@defect("Japanese", "chinese_confidence")
def caption_in_japanese(pair: Pair, photo: dict[str, Any], rng: random.Random) -> Pair:
    place = rng.choice(("公園", "海辺", "庭", "駅前", "山道", "台所"))
    when = rng.choice(("朝", "夕方", "昨日", "先週末", "春の日"))
    return replace(pair, caption=f"これは{when}に{place}で撮ったお気に入りの写真です。とてもきれいでした。")


@defect("stop words only", "stop_word_share")
def use_only_stop_words(pair: Pair, photo: dict[str, Any], rng: random.Random) -> Pair:
    words = ["这个", "就是", "那么", "因为", "所以", "我们", "你们", "什么", "怎么", "如果", "但是", "而且", "还是"]
    return replace(pair, caption="，".join(rng.sample(words, 8)))


@defect("no noun", "nouns")
def use_no_noun(pair: Pair, photo: dict[str, Any], rng: random.Random) -> Pair:
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
    return replace(pair, caption="，".join(rng.sample(words, 8)))


@defect("rare characters", "unknown_tokens")
def add_rare_characters(pair: Pair, photo: dict[str, Any], rng: random.Random) -> Pair:
    rare = [chr(rng.randrange(0x20000, 0x2A6D0)) for _ in range(8)]
    return replace(pair, caption=pair.caption + "，附录字表：" + "、".join(rare))


@defect("repeated token", "text_entropy")
def repeat_token(pair: Pair, photo: dict[str, Any], rng: random.Random) -> Pair:
    return replace(pair, caption=" ".join([rng.choice(("图片", "照片", "风景", "壁纸", "花朵"))] * rng.randint(6, 20)))


@defect("advert", "unsafe_caption")
def add_advert(pair: Pair, photo: dict[str, Any], rng: random.Random) -> Pair:
    pitch = rng.choice(
        (
            "本店专业代理各种发票，代开发票请加扣扣，款到发货",
            "诚招兼职，网络工作在家日赚三百，有意者加QQ咨询",
            "无抵押贷款当天放款，信用卡提现，请点击进入了解",
            "免费索取样品，详情请进入微店联系客服下单",
            "连锁加盟低价出售，免费订购热线全天开通",
        )
    )
    return replace(pair, caption=f"{pair.caption[:12]}，{pitch}")


@defect("contact details", "unsafe_caption")
def add_contact_details(pair: Pair, photo: dict[str, Any], rng: random.Random) -> Pair:
    number = rng.randrange(10**8, 10**9)
    ways = (f"，原图购买加微信 pic{number}", f"，拍摄预约电话13{number}", f"，高清原图联系QQ：{number}")
    return replace(pair, caption=pair.caption + rng.choice(ways))


# ── pictures ──


def _open(pair: Pair) -> Image.Image:
    return open_picture(pair.image, DEFAULT_MAX_PIXELS).convert("RGB")


def _with_picture(pair: Pair, picture: Image.Image, quality: int = 90) -> Pair:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return replace(pair, image=buffer.getvalue())


@defect("not a picture", "readable")
def replace_with_other_file(pair: Pair, photo: dict[str, Any], rng: random.Random) -> Pair:
    pages = (b"<!DOCTYPE html><html><title>404 Not Found</title></html>", b"%PDF-1.7\n%\xe2\xe3", b"PK\x03\x04\x14\x00")
    return replace(pair, image=rng.choice(pages))


@defect("wrong aspect", "aspect_ratio")
def cut_to_strip(pair: Pair, photo: dict[str, Any], rng: random.Random) -> Pair:
    picture = _open(pair)
    strip = picture.crop((0, 0, picture.width, max(picture.width // 4, 1)))
    return _with_picture(pair, strip if rng.random() < 0.5 else strip.rotate(90, expand=True))


@defect("tiny", "shortest_edge")
def shrink_picture(pair: Pair, photo: dict[str, Any], rng: random.Random) -> Pair:
    return _with_picture(pair, ImageOps.contain(_open(pair), (100, 100)))


@defect("truncated", "decodable")
def truncate_picture(pair: Pair, photo: dict[str, Any], rng: random.Random) -> Pair:
    return replace(pair, image=pair.image[: int(len(pair.image) * rng.uniform(0.3, 0.8))])


@defect("flat", "pixel_std")
def paint_flat(pair: Pair, photo: dict[str, Any], rng: random.Random) -> Pair:
    colour = tuple(rng.randrange(256) for _ in range(3))
    return _with_picture(pair, Image.new("RGB", _open(pair).size, colour))


@defect("blurred", "laplacian_variance")
def blur_picture(pair: Pair, photo: dict[str, Any], rng: random.Random) -> Pair:
    return _with_picture(pair, _open(pair).filter(ImageFilter.GaussianBlur(rng.uniform(3, 6))))


@defect("low entropy", "image_entropy")
def dither_picture(pair: Pair, photo: dict[str, Any], rng: random.Random) -> Pair:
    buffer = io.BytesIO()
    _open(pair).convert("1").save(buffer, "PNG")  # dithered black and white: sharp, full contrast, one bit a pixel
    return replace(pair, image=buffer.getvalue(), extension="png")


@defect("exact duplicate", "redundancy")
def duplicate_pair(pair: Pair, photo: dict[str, Any], rng: random.Random) -> Pair:
    return replace(pair, caption=photo["captions"][1])


@defect("near duplicate", "redundancy")
def duplicate_changed_picture(pair: Pair, photo: dict[str, Any], rng: random.Random) -> Pair:
    picture = _open(pair)
    width, height = picture.size
    how = rng.randrange(4)
    if how == 0:
        return replace(_with_picture(pair, picture, quality=55), caption=photo["captions"][1])
    if how == 1:
        picture = picture.resize((width * 9 // 10, height * 9 // 10), Image.Resampling.LANCZOS)
    elif how == 2:
        picture = picture.crop((width // 50, height // 50, width - width // 50, height - height // 50))
    else:
        picture = ImageEnhance.Brightness(picture).enhance(1.06)
    return replace(_with_picture(pair, picture), caption=photo["captions"][1])


# ── harmless changes ──


def harmless(pair: Pair, position: int) -> Pair:
    """Changes two of seven clean captions, to Traditional characters and to one with emoji. Both must be kept."""
    if position % 7 == 0:
        return replace(pair, caption=opencc.OpenCC("s2t").convert(pair.caption), metadata={"script": "traditional"})
    if position % 7 == 1:
        return replace(pair, caption=f"✨{pair.caption}❤️👍🏽", metadata={"script": "decorated"})
    return pair
