"""Answers in the Playground: as prose and as written, copied, followed while they come, without a word."""

from __future__ import annotations

from playwright.sync_api import expect

from conversing_for_tests import answer_with, ask, assistant, bodies_of, user

HOSTILE = "<img src=x onerror=alert(1)><b>bold</b>"

STREAMED = """
const asked = window.fetch;
window.fetch = (path, options) => {
  if (!path.includes("/chat/")) return asked(path, options);
  const encoder = new TextEncoder();
  const body = new ReadableStream({
    start: (controller) => {
      window.write = (content) => {
        const chunk = { choices: [{ index: 0, delta: { content }, finish_reason: null }], system_fingerprint: null };
        controller.enqueue(encoder.encode(`data: ${JSON.stringify(chunk)}\\n\\n`));
      };
    },
  });
  return Promise.resolve(new Response(body, { headers: { "Content-Type": "text/event-stream" } }));
};
"""
"""An answer that is as long as what `write` has written."""

SHORTER_FOR_A_FRAME = """
() => new Promise((done) => requestAnimationFrame(() => {
  const answer = [...document.querySelectorAll("article")].at(-1);
  answer.style.display = "none";
  setTimeout(() => { answer.style.display = ""; done(); });
}))
"""

RESTS_ABOVE = """
(limit) => new Promise((done, fail) => {
  const look = (last, frames, left) => {
    const still = scrollY < limit && scrollY === last ? frames + 1 : 0;
    if (still === 10) done(scrollY);
    else if (left === 0) fail(new Error(`the page is at ${scrollY}, not at rest above ${limit}`));
    else requestAnimationFrame(() => look(scrollY, still, left - 1));
  };
  look(-1, 0, 600);
})
"""
"""Where the page rests once it is above `limit` (pixels). `wait_for_function` evaluates text at each look, which the
page's Content-Security-Policy forbids."""


def test_an_answer_without_a_word_says_so_and_is_an_answer(read):
    page = read().page
    bodies = bodies_of(page)
    answer_with(page, "", tokens=1)
    page.goto("/playground?model=tiny")
    ask(page, "Hello")
    answer = page.get_by_role("article").first
    expect(answer.get_by_text("It ended without a word.")).to_be_visible()
    expect(answer.get_by_text("1 token", exact=True)).to_be_visible()
    expect(answer.get_by_text("ended by itself")).to_be_visible()
    ask(page, "Really?")
    expect(page.locator(".answer.done")).to_have_count(2)
    assert bodies[1]["messages"] == [user("Hello"), assistant(""), user("Really?")]


def test_an_answer_is_shown_with_its_tables_and_code_and_copied_as_written(read):
    lines = [
        "<think>", "One table.", "</think>", "# Order 4711",
        f"A **lamp**, `2 * 3`, [safe](https://a.example/b), {HOSTILE}", "",
        "1. First", "   - by truck", "2. Then", "```html", "<b>4 * 5 * 6</b>", "```",
        "| Part | Price |", "| --- | ---: |", "| Lamp | 12 |", "", "[x](javascript:alert(1)) 2*3*4 and *so* on",
    ]  # fmt: skip
    text = "\n".join(lines)
    page = read(permissions=["clipboard-read", "clipboard-write"]).page
    answer_with(page, text)
    page.goto("/playground?model=tiny")
    ask(page, "Hello")
    answer = page.get_by_role("article")
    expect(answer.get_by_text("Order 4711")).to_have_text("Order 4711")
    expect(answer.locator("strong")).to_have_text("lamp")
    expect(answer.locator("p > code")).to_have_text("2 * 3")
    expect(answer.locator("a")).to_have_attribute("href", "https://a.example/b")
    expect(answer.locator("a")).to_have_attribute("rel", "noopener noreferrer")
    expect(answer.locator("ol > li")).to_have_count(2)
    expect(answer.locator("ol > li > ul > li")).to_have_text("by truck")
    expect(answer.locator("pre")).to_have_text("<b>4 * 5 * 6</b>")
    expect(answer.get_by_role("columnheader")).to_have_text(["Part", "Price"])
    expect(answer.get_by_role("cell")).to_have_text(["Lamp", "12"])
    expect(answer.locator("em")).to_have_text("so")
    expect(answer.get_by_text("[x](javascript:alert(1)) 2*3*4 and")).to_be_visible()
    expect(answer.get_by_text(HOSTILE)).to_be_visible()
    expect(answer.get_by_text("One table.")).to_be_hidden()
    answer.get_by_text("What it thought first").click()
    expect(answer.get_by_text("One table.")).to_be_visible()
    assert answer.locator("img, b").count() == 0
    answer.get_by_role("button", name="Copy the answer of tiny").click()
    expect(answer.get_by_text("Copied")).to_be_attached()
    assert page.evaluate("navigator.clipboard.readText()") == text
    page.get_by_label("Answers as written").check()
    expect(answer.locator(".plain-text")).to_have_text(text)
    expect(answer.locator("table, pre, details")).to_have_count(0)


def test_lists_in_lists_take_no_longer_the_deeper_they_are(read):
    """Such as a model that repeats itself writes: all of it is there, and the page answers."""
    deep = "\n".join("  " * depth + f"- deep {depth}" for depth in range(200))
    text = "\n".join((deep, "- + " * 3000 + "end", "**a " * 3000, "`" * 3001, "[a](" * 3000, "word " + "`" * 500_000))
    page = read().page
    answer_with(page, text)
    page.goto("/playground?model=tiny")
    ask(page, "Hello")
    expect(page.get_by_role("article")).to_contain_text("- deep 199")


def test_an_answer_is_followed_after_another_screen_was_shown(read):
    page = read().page
    page.add_init_script(STREAMED)
    page.goto("/playground?model=tiny")
    ask(page, "Hello")
    page.evaluate("lines => write(lines)", "line 0\n\n")
    expect(page.get_by_text("line 0")).to_be_visible()
    page.get_by_role("link", name="Account").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Account")
    page.get_by_role("link", name="Playground").click()
    expect(page.get_by_text("line 0")).to_be_visible()
    page.evaluate("lines => write(lines)", "line 1\n\n" * 80)
    expect(page.get_by_text("line 1").last).to_be_in_viewport()


def test_a_page_that_gets_shorter_and_longer_is_still_followed(read):
    """The browser moves it up to its new end, and says so when it is longer again: as if its reader looked back."""
    page = read().page
    page.add_init_script(STREAMED)
    page.goto("/playground?model=tiny")
    ask(page, "Hello")
    page.evaluate("lines => write(lines)", "line 0\n\n" * 80)
    last = page.get_by_text("line 0").last
    for _ in range(3):
        expect(last).to_be_in_viewport()
        page.evaluate(SHORTER_FOR_A_FRAME)
    expect(last).to_be_in_viewport()


def test_the_end_of_an_answer_is_followed_until_its_reader_looks_back(read):
    page = read().page
    page.add_init_script(STREAMED)
    page.goto("/playground?model=tiny")
    ask(page, "Hello")
    end = page.locator(".composer")

    def bottom() -> int:
        return page.evaluate("document.querySelector('.composer').getBoundingClientRect().bottom - innerHeight")

    for number in range(3):
        page.evaluate("lines => write(lines)", f"line {number}\n\n" * 40)
        expect(page.get_by_text(f"line {number}").last).to_be_in_viewport()
    expect(end).to_be_in_viewport()
    assert bottom() <= 0
    page.mouse.move(600, 300)
    followed = page.evaluate("scrollY")
    page.mouse.wheel(0, -400)
    place = page.evaluate(RESTS_ABOVE, followed - 300)
    page.evaluate("lines => write(lines)", "late\n\n" * 40)
    expect(page.get_by_role("article").get_by_text("late").last).to_be_attached()
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    assert page.evaluate("scrollY") == place
    page.get_by_role("button", name="Stop", exact=True).click()
