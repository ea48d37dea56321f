"""The page in a browser: questions and answers, stopping, errors, the key, what is kept."""

from __future__ import annotations

import functools
import re

import pytest

pytest.importorskip("fastapi")

from server.chromium import launched, opened, reloaded
from server.scripted import Script, application, serving

from pixtral.assets import demo_image_path
from pixtral.server.page import PageFacts

FACTS = PageFacts(auth_required=False, max_images=4, max_image_pixels=33_554_432, max_body_bytes=3_000_000)
DESCRIPTION = "A red circle, a blue square and a green star."


@pytest.fixture(scope="module")
def browser():
    with launched() as browser:
        yield browser


@pytest.fixture(scope="module")
def server():
    """A scripted server for all; each test writes a script of its own into it."""
    script = Script()
    with serving(application(script, FACTS)) as url:
        yield url, script


@pytest.fixture
def script(server):
    server[1].__init__()
    return server[1]


@pytest.fixture
def load(browser, server, script):
    """Opens the page on the scripted server."""
    return functools.partial(opened, browser, server[0])


def ask(page, text):
    page.locator("#question").fill(text)
    page.locator("#send").click()


def answer_of(page, number=-1):
    """The text of an answer that has ended."""
    item = page.locator(".message.assistant").nth(number)
    item.locator(".message-foot button").first.wait_for()
    return item.locator(".prose").inner_text()


def test_the_embedded_model_answers_about_an_image(browser, live):
    with opened(browser, live.url) as page:
        page.set_input_files("#files", demo_image_path())
        assert page.locator(".tile .caption").inner_text() == "70 tokens · 7 × 9"
        assert page.locator(".tile .grid path").first.get_attribute("d").count("V7") == 8
        page.evaluate(
            """() => { window.seen = []; new MutationObserver(() => window.seen.push(
            document.querySelector(".prose")?.textContent ?? "")).observe(
            document.querySelector("#thread"), {subtree: true, childList: true, characterData: true}); }"""
        )
        ask(page, "What is in the picture?")
        assert answer_of(page) == DESCRIPTION
        seen = [text for text in page.evaluate("window.seen") if text]
        assert all(DESCRIPTION.startswith(text) for text in seen)
        assert re.match(r"\d+ \+ \d+ tokens · ", page.locator(".meta").inner_text())

        ask(page, "How many shapes are there?")
        assert answer_of(page) == "There are three shapes."
        assert "cached" in page.locator(".meta").last.inner_text(), "the image's tokens were cached"

        reloaded(page)
        assert page.locator(".prose").all_inner_texts() == [DESCRIPTION, "There are three shapes."]
        assert page.locator(".bubble").all_inner_texts() == ["What is in the picture?", "How many shapes are there?"]
        image = page.locator(".message.user img")
        image.scroll_into_view_if_needed()
        assert image.evaluate("image => image.decode().then(() => image.naturalWidth)") == 144


def test_the_welcome_offers_the_packaged_image(browser, live):
    with opened(browser, live.url) as page:
        page.get_by_role("button", name="How many shapes are there?").click()
        page.locator(".tile .caption").wait_for()
        page.keyboard.press("Enter")
        assert answer_of(page) == "There are three shapes."


@pytest.mark.parametrize("how", ["button", "escape"])
def test_an_answer_is_stopped(load, script, how):
    script.pieces, script.pause = ["word "] * 1000, 0.02
    with load() as page:
        ask(page, "Count")
        page.get_by_text("word word").wait_for()
        page.locator("#stop").click() if how == "button" else page.keyboard.press("Escape")
        assert answer_of(page).startswith("word word")
        assert page.locator(".meta").inner_text().startswith("Stopped")
        assert script.left(), "the server went on"
        assert page.evaluate("document.activeElement.id") == "question"
        script.pieces = ["Done."]
        ask(page, "Again")
        assert answer_of(page) == "Done."
        stopped = script.bodies[1]["messages"][1]
        assert stopped["role"] == "assistant" and stopped["content"].startswith("word word")


def test_a_conversation_that_is_deleted_while_it_is_answered_stays_deleted(load, script):
    script.pieces, script.pause = ["word "] * 1000, 0.02
    with load() as page:
        ask(page, "Count")
        page.get_by_text("word word").wait_for()
        page.get_by_role("button", name="Delete “Count”").click()
        page.get_by_role("button", name="Undo").wait_for()
        assert script.left()
        reloaded(page)
        assert page.locator("#conversations .open").count() == 0


def test_an_answer_goes_on_while_another_conversation_is_read(load, script):
    script.pieces, script.pause = ["one ", "two ", "three ", "four"], 0.15
    with load() as page:
        ask(page, "First")
        page.get_by_text("one").wait_for()
        page.locator("#new").click()
        assert page.locator(".message").count() == 0
        assert page.locator("#conversations .busy").count() == 1
        page.locator("#conversations .busy").wait_for(state="detached")
        page.get_by_role("button", name="First", exact=True).click()
        assert answer_of(page) == "one two three four"


REFUSALS = [
    (400, {"error": {"message": "too long <b>x</b>"}}, {}, "The server refused this", "Too long <b>x</b>."),
    (429, {"error": {"message": "Full."}}, {"Retry-After": "7"}, "The server is busy", "Full. It asks to wait 7 s."),
    (503, {"error": {"message": "Stopping."}}, {}, "The server is not ready", "Stopping."),
    (500, "<html>", {}, "The server has failed", "Status 500 Internal Server Error."),
]


def test_a_refusal_can_be_read_and_tried_again(load, script):
    with load(trouble=("the server responded with a status",)) as page:
        for status, body, headers, heading, words in REFUSALS:
            script.refusal = (status, body, headers)
            page.keyboard.press("Alt+n")
            ask(page, "Hello")
            page.locator(".trouble strong", has_text=heading).wait_for()
            assert page.locator(".trouble p").inner_text() == words
            script.refusal = None
            page.get_by_role("button", name="Answer again").click()
            page.get_by_text("Hello.", exact=True).wait_for()
            assert page.locator(".trouble").is_hidden()
            assert [message["role"] for message in script.bodies[-1]["messages"]] == ["user"]


def test_questions_without_an_answer_go_with_the_next(load, script):
    script.refusal = (503, {"error": {"message": "no"}}, {})
    with load(trouble=("status of 503",)) as page:
        ask(page, "One")
        page.locator(".trouble").wait_for()
        script.refusal = None
        ask(page, "Two")
        page.get_by_text("Hello.", exact=True).wait_for()
        (message,) = script.bodies[-1]["messages"]
        assert [part["text"] for part in message["content"]] == ["One", "Two"]


@pytest.mark.parametrize("last", [None, {"error": {"message": "The engine stopped.", "code": 500}}])
def test_an_answer_that_breaks_off_says_so_and_keeps_what_came(load, script, last):
    script.pieces, script.pause = ["Half an ", "answer", last], 0.02
    with load(trouble=("ERR_INCOMPLETE_CHUNKED_ENCODING",)) as page:
        ask(page, "Hello")
        assert answer_of(page) == "Half an answer"
        assert "The answer broke off" in page.locator(".trouble").inner_text()
        if last:
            assert "The engine stopped." in page.locator(".trouble").inner_text()
        reloaded(page)
        assert answer_of(page) == "Half an answer"


def test_a_server_that_is_gone(load, script):
    with load(trouble=("ERR_FAILED",)) as page:
        page.route("**/v1/**", lambda route: route.abort())
        ask(page, "Hello")
        page.get_by_text("The server cannot be reached", exact=True).wait_for()


def test_the_key_is_asked_for_and_kept_for_this_tab(browser):
    script = Script()
    script.key = "right"
    facts = PageFacts(auth_required=True, max_images=4, max_image_pixels=10**8, max_body_bytes=10**8)
    with serving(application(script, facts)) as url, opened(browser, url, trouble=("status of 401",)) as page:
        field = page.get_by_role("textbox", name="API key")
        field.fill("wrong")
        page.keyboard.press("Enter")
        page.get_by_text("wrong API key").wait_for()
        field.fill("right")
        page.keyboard.press("Enter")
        page.get_by_text("scripted").wait_for()
        ask(page, "Hello")
        assert answer_of(page) == "Hello."
        assert "right" not in page.evaluate("JSON.stringify(localStorage)")
        reloaded(page)
        page.get_by_text("scripted").wait_for()
        script.key = "changed"
        ask(page, "More")
        page.get_by_role("textbox", name="API key").fill("changed")
        page.get_by_label("Remember it on this device").check()
        page.keyboard.press("Enter")
        page.get_by_text("Hello.", exact=True).nth(1).wait_for()
        assert "changed" in page.evaluate("JSON.stringify(localStorage)")


def test_settings_go_into_the_request_and_nothing_else_does(load, script):
    with load() as page:
        ask(page, "Plain")
        answer_of(page)
        assert set(script.bodies[0]) == {"model", "messages", "stream", "stream_options"}
        page.locator("#settings").click()
        page.get_by_label("Instructions").fill("Be brief.")
        page.get_by_label("Temperature").fill("0.3")
        page.get_by_label("Longest answer").fill("50")
        page.get_by_label("Seed").fill("0")
        page.get_by_label("Stop at").fill("\n\nEND\nstop here")
        page.get_by_label("Top p").fill("7")
        assert "expected 0 to 1" in page.locator(".settings-dialog").inner_text()
        page.get_by_role("button", name="Done").click()
        assert page.locator(".settings-dialog").count() == 1, "a wrong number stays to be seen"
        page.get_by_label("Top p").fill("0.9")
        page.get_by_role("button", name="Done").click()
        ask(page, "Again")
        answer_of(page)
        body = script.bodies[1]
        assert body["messages"][0] == {"role": "system", "content": "Be brief."}
        assert (body["temperature"], body["max_tokens"], body["seed"], body["top_p"]) == (0.3, 50, 0, 0.9)
        assert body["stop"] == ["END", "stop here"] and "top_k" not in body
        reloaded(page)
        page.locator("#settings").click()
        assert page.get_by_label("Instructions").input_value() == "Be brief."


def test_a_question_is_edited(load, script):
    with load() as page:
        for text in ("One", "Two", "Three"):
            ask(page, text)
            answer_of(page)
        page.locator(".message.user").nth(1).hover()
        page.get_by_role("button", name="Edit the question").nth(1).click()
        assert page.locator("#question").input_value() == "Two"
        ask(page, "Zwei")
        answer_of(page)
        assert page.locator(".bubble").all_inner_texts() == ["One", "Zwei"]
        assert [message["role"] for message in script.bodies[-1]["messages"]] == ["user", "assistant", "user"]


def test_events_are_read_however_they_are_cut(load):
    text = (
        ': -\r\ndata: {"a": "é🙂"}\r\n\r\nevent: x\ndata:one\ndata: two\n\n\ndata: last\r\rdata: [DONE]\n\ndata: no\n\n'
    )
    read = """async ([text, size]) => {
        const { events } = await import(document.querySelector("script[type=module]").src.replace("app.js", "sse.js"));
        const bytes = new TextEncoder().encode(text);
        const body = new ReadableStream({start(controller) {
            for (let at = 0; at < bytes.length; at += size) controller.enqueue(bytes.slice(at, at + size));
            controller.close();
        }});
        const found = [];
        for await (const event of events(body)) found.push(event);
        return found;
    }"""
    with load() as page:
        for size in (1, 2, 3, 5, 7, 1000):
            assert page.evaluate(read, [text, size]) == ['{"a": "é🙂"}', "one\ntwo", "last"], size
