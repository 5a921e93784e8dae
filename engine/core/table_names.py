"""The usual names of the columns of tables of URLs and captions. Help texts list them, so nothing is imported."""

URL_COLUMNS = ("image_url", "img_url", "imageurl", "url")
CAPTION_COLUMNS = ("caption", "text", "alt_text", "alt", "title")
"""Names of the columns in public tables, in any case, the first choice first: `URL` and `TEXT` (LAION), `url` and
`text` (DataComp, COYO), `url` and `caption` (Wukong), `ImageUrl` and `Title` (Zero, whose `Url` is the page's)."""
