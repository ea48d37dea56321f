"""What a model says stays text: Markdown in the page, kind and hostile."""

from __future__ import annotations

import pytest

pytest.importorskip("fastapi")

from server.chromium import launched, opened
from server.scripted import Script, application, serving

from pixtral.server.page import PageFacts

HOSTILE = """\
<script>window.pwned = 1</script>

<img src=x onerror="window.pwned = 2"> and <svg onload=window.pwned=3> <b>bold?</b> <iframe src="https://evil.example">

[one](javascript:window.pwned=4) [two](JaVaScRiPt:window.pwned=5) [three](data:text/html,<script>6</script>)
[four](vbscript:x) [five](java\\script:x) [six](//evil.example) [seven](file:///etc/passwd) [eight](blob:x)
![an image](https://evil.example/track.png?secret) [ok](https://good.example/?a=1&b="2") <https://auto.example/x>

| <i>a</i> | b |
|---|---|
| <img src=x onerror=window.pwned=7> | [x](javascript:window.pwned=8) |

```html"><script>window.pwned = 9</script>
</code></pre><script>window.pwned = 10</script>
```

&lt;script&gt; &#60;script&#62; `<script>` **<u>**
"""
PLAIN = """\
# Title

A **bold *and slanted* word**, `code with ** in it`, ~~gone~~, snake_case_name, 2 * 3 * 4, \\*kept\\*,
second line with https://example.com/a_(b), and [a link](https://example.com "title").

1. one
2. two
   - inner
   - *other*

   more of two

3. three

> quoted
> - list

| left | right |
|:--|--:|
| a \\| b | 1 |
| only |

---

~~~python
def f():
    return "<b>"
~~~
"""


@pytest.fixture(scope="module")
def page():
    """One page for all: each test asks a question of its own."""
    script = Script()
    facts = PageFacts(auth_required=False, max_images=4, max_image_pixels=10**7, max_body_bytes=10**7)
    with launched() as browser, serving(application(script, facts)) as url, opened(browser, url) as page:
        page.script = script
        yield page


def shown(page, text, pieces=1):
    """The element of an answer with this text, streamed in so many pieces."""
    size = -(-len(text) // pieces)
    page.script.pieces = [text[at : at + size] for at in range(0, len(text), size)]
    count = page.locator(".message.assistant").count()
    page.locator("#question").fill("Go on")
    page.locator("#send").click()
    item = page.locator(".message.assistant").nth(count)
    item.locator(".message-foot button").first.wait_for()
    return item.locator(".prose")


@pytest.mark.parametrize("pieces", [1, 300])
def test_hostile_markdown_stays_text(page, pieces):
    prose = shown(page, HOSTILE, pieces)
    assert prose.locator("script, img, svg:not(.icon), iframe, b, i, u, object, embed, form, style").count() == 0
    hrefs = prose.locator("a").evaluate_all("links => links.map(link => link.getAttribute('href'))")
    assert hrefs == [
        "https://evil.example/",  # the address that stands in the text of the iframe
        "https://evil.example/track.png?secret",
        "https://good.example/?a=1&b=%222%22",
        "https://auto.example/x",
    ]
    rels = prose.locator("a").evaluate_all("links => links.map(link => link.rel + link.target)")
    assert set(rels) == {"noopener noreferrer nofollow_blank"}
    attributes = prose.evaluate(
        "root => [...new Set([...root.querySelectorAll('*')].flatMap(e => [...e.attributes].map(a => a.name)))]"
    )
    assert not [name for name in attributes if name.startswith("on") or name in ("style", "src", "srcdoc")]
    text = prose.inner_text()
    assert "<script>window.pwned = 1</script>" in text and 'onerror="window.pwned = 2"' in text
    assert "[one](javascript:window.pwned=4)" in text and "&lt;script&gt; &#60;script&#62;" in text
    assert page.evaluate("window.pwned") is None


@pytest.mark.parametrize("pieces", [1, 200])
def test_markdown_is_shown_however_it_is_cut(page, pieces):
    prose = shown(page, PLAIN, pieces)

    def texts(selector):
        return [text.strip() for text in prose.locator(selector).all_inner_texts()]

    assert texts("h3.h1") == ["Title"]
    assert texts("p strong") == ["bold and slanted word"] and texts("p strong em") == ["and slanted"]
    assert texts("p code") == ["code with ** in it"] and texts("del") == ["gone"]
    first = texts("p")[0]
    assert "snake_case_name, 2 * 3 * 4, *kept*,\nsecond line" in first
    links = prose.locator("a").evaluate_all("links => links.map(link => link.href)")
    assert links == ["https://example.com/a_(b)", "https://example.com/"]
    assert prose.locator(":scope > ol > li").count() == 3 and texts("ol ul li") == ["inner", "other"]
    assert "more of two" in texts(":scope > ol > li")[1]
    assert texts("blockquote p") == ["quoted"] and texts("blockquote li") == ["list"]
    assert texts("thead th") == ["left", "right"] and texts("tbody td") == ["a | b", "1", "only", ""]
    assert prose.locator("td.to-right").count() == 2 and prose.locator("hr").count() == 1
    assert texts("figure.code pre") == ['def f():\n    return "<b>"'] and texts("figcaption span") == ["python"]


@pytest.mark.parametrize(
    "text",
    [
        "[" * 30_000,
        "](" * 15_000,
        "*a " * 10_000,
        "**a*" * 10_000,
        "`" * 500 + "a" + "``b" * 9_000,
        "> " * 10_000,
        "#" + " " * 30_000 + "x",
        "- " * 10_000,
        "\n".join("  " * n + "- a" for n in range(200)),
        "|" * 20_000 + "\n|-",
        "http://a" + ")" * 30_000,
        "<http://" * 5_000,
        "_a_" * 10_000,
        "~~" * 15_000,
        "* " * 2_000 + "x",
        "![" * 15_000,
        "\n".join(["a | b"] * 3_000),
        "[a](<" * 6_000,
        "1. " * 10_000,
        "-" * 30_000 + "x",
        "\\" * 30_000,
    ],
)
def test_no_text_takes_long(page, text):
    seconds = page.evaluate(
        """async (text) => {
            const app = document.querySelector("script[type=module]").src;
            const { Prose } = await import(app.replace("app.js", "markdown.js"));
            const prose = new Prose();
            const started = performance.now();
            prose.show(text);
            return (performance.now() - started) / 1000;
        }""",
        text,
    )
    assert seconds < 1


def test_what_has_been_shown_keeps_its_elements(page):
    kept = page.evaluate(
        """async () => {
            const app = document.querySelector("script[type=module]").src;
            const { Prose } = await import(app.replace("app.js", "markdown.js"));
            const prose = new Prose();
            prose.show("one\\n\\ntwo");
            const first = prose.element.firstChild;
            prose.show("one\\n\\ntwo and more\\n\\nthree");
            const children = prose.element.children;
            return [children[0] === first, children.length, children[1].textContent];
        }"""
    )
    assert kept == [True, 3, "two and more"]
