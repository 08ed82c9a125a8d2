"""The shell around the screens: addresses, languages, themes, the keyboard, a narrow window."""

from __future__ import annotations

import re

from playwright.sync_api import expect

from halka.server.page import SCREENS


def test_every_screen_has_an_address_that_can_be_opened_again(read):
    page = read().page
    page.goto("/")
    page.get_by_role("heading", level=1, name="Playground").wait_for()
    links = page.get_by_role("navigation", name="Screens").get_by_role("link")
    assert links.count() == len(SCREENS)
    for number, screen in [*enumerate(SCREENS)][1:]:
        links.nth(number).click()
        page.wait_for_url(f"**/{screen}*")
        name = links.nth(number).inner_text()
        expect(page.get_by_role("heading", level=1)).to_have_text(name)
        expect(page).to_have_title(f"{name} · Halka")
        expect(page.locator("#content")).to_be_focused()
    page.reload()
    page.get_by_role("heading", level=1, name="Account").wait_for()
    page.go_back()
    page.get_by_role("heading", level=1, name="Advise").wait_for()
    page.goto("/adapters/a name/of%2Fsome kind?x=<b>")
    expect(page.locator("a[aria-current=page]")).to_have_text("Adapters")


def test_the_language_and_the_theme_are_chosen_and_stay(read):
    reader = read(locale="bn-BD", color_scheme="dark")
    page = reader.page
    page.goto("/train")
    page.get_by_role("heading", level=1, name="প্রশিক্ষণ").wait_for()
    assert page.evaluate("document.documentElement.lang") == "bn"
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.get_by_role("radio", name="English").check()
    page.get_by_role("heading", level=1, name="Train").wait_for()
    page.get_by_role("radio", name="Light").check()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != dark
    page.reload()
    page.get_by_role("heading", level=1, name="Train").wait_for()
    assert page.evaluate("document.documentElement.dataset.theme") == "light"


def test_a_language_that_is_gone_leaves_the_one_before(read):
    page = read(locale="en-GB").page
    page.route("**/assets/bn-*.js", lambda route: route.fulfill(status=404))
    page.goto("/train")
    page.get_by_role("radio", name="বাংলা").click()
    expect(page.get_by_role("status").filter(has_text="The page was updated on the server")).to_be_visible()
    expect(page.get_by_role("heading", level=1)).to_have_text("Train")
    assert page.evaluate("document.documentElement.lang") == "en"
    page.get_by_role("button", name="Load again").click()
    expect(page.get_by_text("The page did not load completely.")).to_be_visible()
    expect(page.get_by_text("পাতাটি পুরোপুরি লোড হয়নি।")).to_be_visible()


def test_a_screen_that_a_lost_connection_held_back_is_not_an_update(read):
    reader = read(locale="en-GB")
    page = reader.page
    page.goto("/train")
    page.route("**/assets/account-*.js", lambda route: route.abort())
    page.route("**/v1/session", lambda route: route.abort())
    page.get_by_role("link", name="Account").click()
    expect(page.get_by_role("alert")).to_contain_text("The server does not answer.")
    expect(page.get_by_text("The page was updated on the server")).to_have_count(0)
    reader.wrong.clear()  # the browser says so, too


def test_a_file_dropped_beside_its_place_is_not_opened(read):
    page = read().page
    page.goto("/train")
    page.get_by_role("heading", level=1).wait_for()
    drop = """() => {
        const dataTransfer = new DataTransfer();
        dataTransfer.items.add(new File(["x"], "a.txt"));
        return document.body.dispatchEvent(new DragEvent("drop", { bubbles: true, cancelable: true, dataTransfer }));
    }"""
    assert page.evaluate(drop) is False


def test_the_keyboard_alone(read):
    page = read().page
    page.goto("/account")
    page.get_by_role("heading", level=1).wait_for()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("Enter")
    expect(page.locator("#content")).to_be_focused()
    page.locator("a[aria-current=page]").focus()
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    page.get_by_role("heading", level=1, name="Advise").wait_for()


def test_a_narrow_window_folds_the_menu(read):
    page = read(viewport={"width": 390, "height": 800}).page
    page.goto("/compare")
    page.get_by_role("heading", level=1).wait_for()
    assert not page.get_by_role("navigation").is_visible()
    page.get_by_role("button", name="Menu").click()
    page.get_by_role("link", name="Documents").click()
    page.get_by_role("heading", level=1, name="Documents").wait_for()
    assert not page.get_by_role("navigation").is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_long_names_and_many_columns_fit(read):
    page = read(viewport={"width": 1000, "height": 700}).page
    name = "a" * 120
    for path in (f"/documents/{name}", f"/adapters/{name}", "/playground?" + "&".join(["model=tiny"] * 9)):
        page.goto(path)
        page.get_by_role("heading", level=1).or_(page.get_by_role("alert")).first.wait_for()
        expect(page.locator(".waiting")).to_have_count(0)
        assert page.evaluate("document.documentElement.scrollWidth") <= 1000, path
    widths = page.locator(".head").evaluate_all("heads => heads.map((head) => head.getBoundingClientRect().width)")
    assert len(widths) > 1
    assert min(widths) >= 239


def test_a_low_window_shows_what_has_the_focus(read):
    page = read(viewport={"width": 640, "height": 400}).page
    page.goto("/playground?model=tiny")
    page.get_by_text("Sampling").click()
    assert page.locator(".composer").evaluate("composer => getComputedStyle(composer).position") == "static"
    assert page.locator(".side").evaluate("side => getComputedStyle(side).position") == "static"


def test_an_address_of_nothing_says_so_and_files_need_no_other_host(read):
    reader = read()
    reader.page.goto("/adapters")
    reader.page.get_by_role("heading", level=1).wait_for()
    reader.page.evaluate("history.pushState(null, '', '/nowhere'); dispatchEvent(new PopStateEvent('popstate'))")
    reader.page.get_by_role("button", name="Go to the Playground").click()
    reader.page.get_by_role("heading", level=1, name="Playground").wait_for()
    assert all(re.match(re.escape(reader.url), url) for url in reader.requests)


def test_the_first_load_is_small_and_asks_little(read):
    reader, sizes = read(), dict[str, int]()
    reader.page.on("requestfinished", lambda request: sizes.update({request.url: request.sizes()["responseBodySize"]}))
    reader.page.goto("/")
    reader.page.get_by_role("button", name="Ask", exact=True).wait_for()
    reader.page.wait_for_load_state("networkidle")
    assert len({*reader.requests}) <= 12  # some Chromiums ask for the icon twice
    assert sum(sizes.values()) < 60_000, sizes
