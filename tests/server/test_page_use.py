"""The page in a browser: images by every way in, the keyboard, a phone, what the browser keeps, the theme."""

from __future__ import annotations

import base64
import io

import pytest

pytest.importorskip("fastapi")

from PIL import Image
from server.chromium import ELSEWHERE, launched, opened, reloaded, settled
from server.scripted import Script, application, serving

from pixtral.assets import demo_image_path
from pixtral.server.page import PageFacts

FACTS = PageFacts(auth_required=False, max_images=4, max_image_pixels=6_000_000, max_body_bytes=4_000_000)
DEMO = str(demo_image_path())
# a file in the hands of the page, as a drop or a paste brings it
BRINGING = """([kind, files]) => {
    const data = new DataTransfer();
    for (const [name, type, content] of files)
        data.items.add(new File([Uint8Array.from(atob(content), c => c.charCodeAt(0))], name, {type}));
    const [Kind, field] = kind === "paste" ? [ClipboardEvent, "clipboardData"] : [DragEvent, "dataTransfer"];
    const send = name => document.body.dispatchEvent(new Kind(name, {[field]: data, bubbles: true, cancelable: true}));
    if (kind !== "paste") { send("dragenter"); send("dragover"); }
    send(kind);
}"""


@pytest.fixture(scope="module")
def server():
    script = Script()
    with serving(application(script, FACTS)) as url:
        yield url, script


@pytest.fixture(scope="module")
def browser():
    with launched() as browser:
        yield browser


@pytest.fixture
def load(browser, server):
    """Opens the page; its script is new for each test."""
    url, script = server
    script.__init__()

    def load(**options):
        return opened(browser, url, **options)

    return load


@pytest.fixture
def script(server):
    return server[1]


def png(width, height):
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), "teal").save(buffer, "PNG")
    return buffer.getvalue()


def drawn(folder, name, width, height):
    """The path of an image; a BMP has three bytes for each pixel."""
    Image.new("RGB", (width, height), "teal").save(folder / name)
    return folder / name


def file(name, content, kind="image/png"):
    return {"name": name, "mimeType": kind, "buffer": content}


def say(page, text):
    page.locator("#question").fill(text)
    page.locator("#send").click()
    page.locator(".message.assistant .message-foot button").last.wait_for()


@pytest.mark.parametrize("kind", ["drop", "paste"])
def test_images_are_dropped_and_pasted(load, script, kind):
    content = base64.b64encode(png(100, 33)).decode()
    with load() as page:
        page.evaluate(BRINGING, [kind, [["a.png", "image/png", content], ["b.png", "image/png", content]]])
        assert page.locator(".tile .caption").nth(1).inner_text() == "24 tokens · 3 × 7"
        assert page.locator("#cost").inner_text() == "2 images, 48 tokens"
        assert page.locator("#drop").is_hidden()
        page.get_by_role("button", name="Remove a.png").click()
        say(page, "What is it?")
        (message,) = script.bodies[0]["messages"]
        image, text = message["content"]
        assert image["image_url"] == {"url": f"data:image/png;base64,{content}", "detail": "auto"}
        assert text == {"type": "text", "text": "What is it?"}
        assert page.locator("#tray").is_hidden()


def test_a_pdf_is_sent_as_it_is(load, script):
    with load() as page:
        page.set_input_files("#files", file("paper.pdf", b"%PDF-1.7", "application/pdf"))
        assert page.locator(".tile .caption").inner_text() == "8,640 tokens · 3 pages"
        say(page, "What is it about?")
        url = script.bodies[0]["messages"][0]["content"][0]["image_url"]["url"]
        assert url == "data:application/pdf;base64,JVBERi0xLjc="
        assert page.locator(".message.user .sheet").inner_text() == "paper.pdf"


def test_what_is_no_image_and_what_is_too_much_is_said(load):
    with load() as page:
        page.set_input_files("#files", file("notes.png", b"not an image"))
        page.get_by_text("“notes.png” is not an image that this browser can show.").wait_for()
        page.set_input_files("#files", [file(f"{n}.png", png(10, 10)) for n in range(6)])
        page.get_by_text("This server takes 4 images in a conversation.").wait_for()
        page.locator(".tile .caption").nth(3).wait_for()
        assert page.locator(".tile").count() == 4
        say(page, "Four")
        page.set_input_files("#files", file("5.png", png(10, 10)))
        assert page.locator(".tile").count() == 0, "images of earlier questions are sent again"


def test_large_images_are_sent_as_the_model_sees_them(load, script, tmp_path):
    with load() as page:
        page.set_input_files(
            "#files", [drawn(tmp_path, "large.bmp", 1500, 1000), drawn(tmp_path, "wide.png", 5000, 1300)]
        )
        captions = page.locator(".tile .caption")
        captions.nth(1).wait_for()
        before = captions.all_inner_texts()
        say(page, "")
        urls = [part["image_url"]["url"] for part in script.bodies[0]["messages"][0]["content"]]
        sizes = [Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))).size for url in urls]
        assert sizes == [(1024, 688), (1024, 272)]
        assert before == ["2,795 tokens · 43 × 64", "1,105 tokens · 17 × 64"]


def test_a_body_that_the_server_would_not_take_is_not_sent(load, script, tmp_path):
    with load() as page:
        page.set_input_files("#files", [drawn(tmp_path, f"{n}.bmp", 800, 800) for n in range(3)])
        page.locator(".tile .caption").nth(2).wait_for()
        page.locator("#send").click()
        page.get_by_text("The message is too large", exact=True).wait_for()
        assert script.bodies == []


def test_a_photograph_taken_upright_is_measured_upright(load, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    Image.new("RGB", (100, 33), "teal").save(tmp_path / "upright.jpg", exif=exif)
    with load() as page:
        page.set_input_files("#files", tmp_path / "upright.jpg")
        assert page.locator(".tile .caption").inner_text() == "28 tokens · 7 × 3"


def test_less_detail_costs_less(load, script):
    with load() as page:
        page.set_input_files("#files", file("a.png", png(640, 640)))
        page.get_by_text("1,640 tokens · 40 × 40").wait_for()
        page.locator("#settings").click()
        page.get_by_label("Detail of images").select_option("low")
        page.get_by_role("button", name="Done").click()
        page.get_by_text("272 tokens · 16 × 16").wait_for()
        say(page, "x")
        assert script.bodies[0]["messages"][0]["content"][0]["image_url"]["detail"] == "low"


def test_an_image_is_looked_at(load):
    with load() as page:
        page.set_input_files("#files", DEMO)
        page.get_by_role("button", name="demo.png: 144 × 112 pixels, 7 × 9 patches, 70 tokens").click()
        dialog = page.get_by_role("dialog", name="demo.png")
        assert dialog.locator(".facts").inner_text() == "144 × 112 pixels, 7 × 9 patches, 70 tokens"
        box, grid = dialog.locator("img").bounding_box(), dialog.locator(".grid").bounding_box()
        assert box == grid and box["width"] > 500
        dialog.get_by_role("button", name="Patches").click()
        assert dialog.locator(".grid").is_hidden()
        page.keyboard.press("Escape")
        dialog.wait_for(state="detached")


def test_everything_by_keyboard(load, script):
    with load() as page:
        press = page.keyboard.press
        page.keyboard.type("First line")
        press("Shift+Enter")
        page.keyboard.type("second")
        press("Enter")
        page.get_by_text("Hello.", exact=True).wait_for()
        assert script.bodies[0]["messages"][0]["content"][0]["text"] == "First line\nsecond"
        press("Alt+n")
        page.keyboard.type("Other")
        press("Enter")
        page.locator(".meta").wait_for()

        def focused():
            return page.evaluate(
                "document.activeElement.getAttribute('aria-label') || document.activeElement.innerText"
            )

        page.locator(".skip").focus()
        order = [focused()]
        while order[-1] != "Message":
            press("Tab")
            order.append(focused())
            assert page.evaluate("document.activeElement.matches(':focus-visible')"), (
                f"the focus cannot be seen after {order}"
            )
            assert len(order) < 30
        assert order[:3] == ["Skip to the question", "New conversation", "Other"]
        assert {"Settings", "Copy the answer", "Answer again", "Edit the question"} <= set(order)
        press("/")
        assert page.locator("#question").input_value() == "/", "where one types it is a character"
        press("Backspace")
        page.locator("#conversations .open").nth(1).focus()
        press("Enter")
        assert page.locator(".bubble").inner_text() == "First line\nsecond"
        page.locator("#conversations .open").nth(1).focus()
        press("F2")
        page.keyboard.type("A title")
        press("Enter")
        assert page.locator("#title").inner_text() == "A title"
        press("Delete")
        page.get_by_role("button", name="Undo").wait_for()
        assert page.locator("#conversations .open").all_inner_texts() == ["Other"]
        press("ArrowUp")
        page.get_by_role("button", name="Undo").focus()
        press("Enter")
        page.get_by_role("button", name="A title", exact=True).wait_for()
        assert page.locator("#conversations .open").count() == 2
        assert page.locator(".prose").inner_text() == "Hello."
        press("ArrowUp")
        assert page.locator("#question").input_value() == "First line\nsecond"
        press("Escape")
        assert page.locator("#question").input_value() == ""
        press("Alt+Comma")
        page.get_by_role("dialog", name="Settings").wait_for()
        assert page.evaluate("document.activeElement.closest('dialog') !== null")
        press("Escape")
        page.get_by_role("dialog").wait_for(state="detached")


def test_a_phone(load, script):
    phone = {"viewport": {"width": 360, "height": 640}, "has_touch": True, "is_mobile": True}
    script.pieces = ["# A\n\n```\n" + "x" * 300 + "\n```\n\n" + "|a" * 30 + "|\n" + "|-" * 30 + "|\n\n" + "long" * 100]

    def fits():
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        assert page.evaluate("document.querySelector('#scroll').scrollWidth") <= 360
        small = page.evaluate(
            """[...document.querySelectorAll("button, select")]
            .filter(e => e.checkVisibility({visibilityProperty: true}))
            .map(e => [e.ariaLabel || e.innerText, e.getBoundingClientRect()])
            .filter(([, box]) => box.width && (box.height < 24 || box.width < 24)).map(([name]) => name)"""
        )
        assert small == []

    with load(**phone) as page:
        fits()
        page.set_input_files(
            "#files", [file("a.png", png(144, 112)), file("wide.png", png(900, 90)), file("tall.png", png(50, 700))]
        )
        page.locator(".tile .caption").nth(2).wait_for()
        fits()
        page.locator("#question").fill("word " * 60 + "w" * 100)
        fits()
        page.keyboard.press("Enter")
        assert script.bodies == [], "Enter is a new line where there is no Shift"
        page.locator("#send").tap()
        page.locator(".meta").wait_for()
        fits()
        sidebar = page.locator("#sidebar")
        assert not sidebar.is_visible()
        page.get_by_role("button", name="Conversations").tap()
        assert sidebar.is_visible() and page.evaluate("document.querySelector('#main').inert")
        assert page.evaluate("document.activeElement.id") == "close-sidebar"
        settled(page)
        fits()
        page.keyboard.press("Escape")
        sidebar.wait_for(state="hidden")
        page.get_by_role("button", name="Conversations").tap()
        page.get_by_role("button", name="New conversation").tap()
        sidebar.wait_for(state="hidden")
        assert page.locator(".message").count() == 0
        page.get_by_role("button", name="Settings").tap()
        fits()


def test_several_conversations_are_kept(load):
    with load() as page:
        for text in ("One", "Two"):
            page.locator("#new").click()
            page.set_input_files("#files", DEMO)
            page.locator(".tile .caption").wait_for()
            say(page, text)
        reloaded(page)
        assert page.locator("#conversations .open").all_inner_texts() == ["Two", "One"]
        assert page.locator(".bubble").inner_text() == "Two", "the one that was open is open"
        page.get_by_role("button", name="One", exact=True).click()
        assert page.locator(".bubble").inner_text() == "One"
        page.go_back()
        page.locator(".bubble", has_text="Two").wait_for()
        page.get_by_role("button", name="Delete “One”").click()
        page.get_by_role("button", name="Undo").wait_for()
        reloaded(page)
        assert page.locator("#conversations .open").all_inner_texts() == ["Two"]
        left = """() => new Promise(done => { indexedDB.open("pixtral").onsuccess = event => {
            const images = event.target.result.transaction("images").objectStore("images");
            images.count().onsuccess = found => done(found.target.result);
        } })"""
        assert page.evaluate(left) == 1, "images go with their conversation"


def test_a_conversation_is_seen_in_other_tabs(load, server, script):
    with load() as page:
        other = page.context.new_page()
        other.goto(server[0])
        say(page, "From here")
        other.get_by_role("button", name="From here", exact=True).click()
        assert other.locator(".prose").inner_text() == "Hello."
        say(other, "From there")
        assert page.locator(".bubble").nth(1).inner_text() == "From there"
        page.get_by_role("button", name="Answer again").last.click()
        page.locator(".message.assistant .meta").nth(1).wait_for()
        assert len(script.bodies) == 3 and len(script.bodies[2]["messages"]) == 3


@pytest.mark.parametrize(
    ("trick", "words"),
    [
        (
            "IDBObjectStore.prototype.put = () => { throw new DOMException('full', 'QuotaExceededError') };",
            "The browser’s storage for this page is full",
        ),
        ("IDBFactory.prototype.open = () => { throw new DOMException('no', 'SecurityError') };", "keeps nothing"),
        ("Storage.prototype.setItem = () => { throw new DOMException('full', 'QuotaExceededError') };", None),
        (
            "Object.defineProperty(window, 'localStorage', {get() { throw new DOMException('x', 'SecurityError') }});",
            None,
        ),
    ],
)
def test_a_browser_that_keeps_nothing(load, trick, words):
    with load(script=trick) as page:
        page.set_input_files("#files", DEMO)
        page.locator(".tile .caption").wait_for()
        say(page, "One")
        if words:
            page.locator(".notice").get_by_text(words).wait_for()
            assert page.locator(".notice").count() == 1, "said once"
        page.locator("#theme").click()
        say(page, "Two")
        assert page.locator(".prose").all_inner_texts() == ["Hello.", "Hello."]
        page.locator("#new").click()
        page.get_by_role("button", name="One", exact=True).click()
        assert page.locator(".bubble").all_inner_texts() == ["One", "Two"]
        image = page.locator(".message.user img")
        image.scroll_into_view_if_needed()
        assert image.evaluate("image => image.decode().then(() => image.naturalWidth)") == 144


def test_over_plain_http_from_another_machine(browser, server, load, script):
    url = server[0].replace("127.0.0.1", ELSEWHERE)
    with opened(browser, url, trouble=("Cross-Origin-Opener-Policy header has been ignored",)) as page:
        assert page.evaluate("isSecureContext") is False
        page.set_input_files("#files", DEMO)
        page.locator(".tile .caption").wait_for()
        say(page, "Hello")
        page.get_by_role("button", name="Copy the answer").click()
        page.locator("#question").focus()
        page.keyboard.press("Control+V")
        assert page.locator("#question").input_value() == "Hello."
        reloaded(page)
        assert page.locator(".prose").inner_text() == "Hello."


def test_dark_and_light(load):
    def background():
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    with load(color_scheme="dark") as page:
        dark = background()
        page.emulate_media(color_scheme="light")
        light = background()
        assert dark != light == "rgb(255, 255, 255)"
        page.locator("#theme").click()
        page.locator("#theme").click()
        assert background() == dark and "dark" in page.locator("#theme").inner_text()
        reloaded(page)
        assert background() == dark


def test_copying(load, script):
    script.pieces = ["Some *text*\n\n```\ncode\n```"]
    with load(permissions=["clipboard-read", "clipboard-write"]) as page:
        say(page, "Hello")
        read = "navigator.clipboard.readText()"
        page.get_by_role("button", name="Copy the answer").click()
        assert page.evaluate(read) == "Some *text*\n\n```\ncode\n```"
        page.get_by_role("button", name="Copy the code").click()
        assert page.evaluate(read) == "code"
        page.get_by_role("button", name="Copy the conversation").click()
        assert page.evaluate(read).startswith("You:\nHello\n\nPixtral:\nSome *text*")
