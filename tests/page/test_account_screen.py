"""Account: the first key closes the server, its text is shown once; use by adapter; keys made, changed, revoked."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, Route, expect

from halka.server.guards.keys import Limits
from serving_for_tests import Running

CHAT = {"model": "lora", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 3}


@pytest.fixture
def own_server(base, store, tmp_path):
    """A server without keys, yet: asked for before `read`, whose windows then close before it does."""
    with Running(base, store, tmp_path / "data") as running:
        yield running


def make_key(page: Page) -> str:
    """Press the button, and read the key that is shown once."""
    page.get_by_role("button", name="Make the key").click()
    made = page.get_by_role("dialog", name="The key is made")
    text = made.locator("pre").inner_text()
    for _ in range(5):  # a browser asks a page for a few of these alone
        page.keyboard.press("Escape")
    made.get_by_role("button", name="I have copied it").click()
    assert text.startswith("halka_")
    return text


def test_keys_are_made_used_and_revoked(own_server, read):
    own_server.client.post("/v1/chat/completions", json=CHAT).raise_for_status()
    page = read(own_server.url).page
    page.goto("/account")
    expect(page.get_by_role("region", name="By adapter").get_by_role("row", name="lora")).to_contain_text("1")
    expect(page.get_by_text("There are no keys yet")).to_be_visible()
    page.get_by_role("button", name="New key").click()
    expect(page.get_by_text("This is the first key")).to_be_visible()
    operator = make_key(page)
    page.get_by_label("API key").fill(operator)
    page.get_by_label("API key").press("Enter")

    keys = page.get_by_role("region", name="Keys")
    expect(keys.get_by_text("yours")).to_be_visible()
    page.get_by_role("button", name="New key").click()
    page.get_by_label("Role", exact=True).select_option("manager")
    page.get_by_label("Tenant", exact=True).fill("acme")
    page.get_by_label("Expires").select_option("30")
    page.get_by_label("Note").fill("<b>nightly</b>")
    page.get_by_role("dialog").get_by_text("Limits", exact=True).click()
    page.get_by_label("Storage of its tenant").fill("-1")
    expect(page.get_by_text("A number above 0.")).to_be_visible()
    page.get_by_role("dialog").get_by_text("Limits", exact=True).click()
    page.get_by_role("button", name="Make the key").click()
    expect(page.get_by_label("Storage of its tenant")).to_be_focused()
    page.get_by_label("Storage of its tenant").fill("২")
    page.get_by_text("The same in a terminal").last.click()
    expect(page.get_by_text("halka keys add --tenant acme --role manager --expires 30d --storage 2GB")).to_be_visible()
    acme = make_key(page)
    row = keys.get_by_role("row", name="<b>nightly</b>")
    for text in ("acme", "manager", "in 30 days", "2 GB stored"):
        expect(row).to_contain_text(text)
    assert keys.locator("b").count() == 0
    mine = {"Authorization": f"Bearer {acme}"}
    asked = own_server.client.get("/v1/session", headers=mine).json()
    assert (asked["tenant"], asked["role"]) == ("acme", "manager")

    row.get_by_role("button", name="Change").click()
    form = page.get_by_role("dialog", name="Change <b>nightly</b>")
    expect(form.get_by_label("Storage of its tenant")).to_have_value("2")
    form.get_by_label("Role", exact=True).select_option("user")
    form.get_by_label("Storage of its tenant").fill("")
    form.get_by_text("The same in a terminal").click()
    expect(form.get_by_text("--role user --storage none")).to_contain_text("halka keys change")
    form.get_by_label("Storage of its tenant").fill("3.5")
    form.get_by_role("button", name="Save").press("Enter")
    expect(row).to_contain_text("3.5 GB stored")
    expect(row.get_by_role("button", name="Change")).to_be_focused()
    assert own_server.client.get("/v1/session", headers=mine).json()["role"] == "user"

    row.get_by_role("button", name="Revoke").click()
    page.get_by_role("dialog").get_by_role("button", name="Revoke <b>nightly</b>").click()
    expect(row).to_have_count(0)
    keys.get_by_role("button", name="Revoke").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("button", name="Revoke").click()
    expect(dialog.get_by_role("alert")).to_contain_text("this is the last admin's key of tenant main")
    dialog.get_by_role("button", name="all the same").click()
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()


def test_a_key_that_is_shown_once_stays_until_it_is_closed(own_server, read):
    """Back, a reload and another tab that signs out would each take the only text of the key."""
    operator, _ = own_server.service.guards.keys.add("main", "admin")
    reader = read(own_server.url)
    page, held = reader.page, list[Route]()
    page.route("**/v1/usage", lambda route: held.append(route))
    page.goto("/playground")
    page.get_by_label("API key").fill(operator)
    page.get_by_label("API key").press("Enter")
    page.get_by_role("link", name="Account").click()
    page.get_by_role("button", name="New key").click()
    page.get_by_role("button", name="Make the key").click()
    made = page.get_by_role("dialog", name="The key is made")
    text = made.locator("pre").inner_text()

    page.evaluate("new Promise((done) => { addEventListener('popstate', () => setTimeout(done)); history.back() })")
    expect(made.locator("pre")).to_have_text(text)
    assert page.url == f"{own_server.url}/account"
    with page.expect_event("dialog", lambda asked: asked.dismiss() or asked.type == "beforeunload"):
        page.evaluate("void setTimeout(() => location.reload())")
    expect(made.locator("pre")).to_have_text(text)
    second = reader.context.new_page()
    second.goto("/account")
    second.get_by_role("button", name="Sign out").click()
    expect(second.get_by_role("heading", level=1)).to_have_text("Sign in")
    with page.expect_response("**/v1/usage") as refused:
        held[0].continue_()
    assert refused.value.status == 401
    page.evaluate("fetch('/v1/session').then((answer) => answer.json())")
    expect(made.locator("pre")).to_have_text(text)

    made.get_by_role("button", name="I have copied it").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Sign in")


def test_the_last_admin_is_changed_all_the_same(own_server, read):
    """The reason comes in the reader's language, with the API's words, and a way out."""
    text, own = own_server.service.guards.keys.add("main", "admin", note="mine")
    page = read(own_server.url, locale="bn-BD").page
    page.goto("/account")
    page.locator("input[type=password]").fill(text)
    page.locator("input[type=password]").press("Enter")
    page.get_by_role("button", name="mine বদলান").click()
    form = page.get_by_role("dialog", name="mine বদলান")
    form.get_by_label("ভূমিকা").select_option("manager")
    form.get_by_role("button", name="সংরক্ষণ করুন").click()
    alert = form.get_by_role("alert")
    expect(alert).to_contain_text("এই টেন্যান্টে প্রশাসকের আর কোনো চাবি নেই।")
    expect(alert.locator("[lang=en]")).to_contain_text("this is the last admin's key of tenant main")
    expect(form.get_by_text("আরেকজন প্রশাসকের চাবি")).to_be_visible()
    form.get_by_role("button", name="তবু সংরক্ষণ করুন").click()
    expect(page.get_by_role("button", name="নতুন চাবি")).to_have_count(0)
    assert own_server.service.guards.keys.all()[own.id].role == "manager"


def test_a_changed_note_changes_no_limits(own_server, read):
    """Limits come all together: those of a key without any would become the admin's own."""
    keys = own_server.service.guards.keys
    keys.add("main", "admin")
    text, _ = keys.add("acme", "admin", limits=Limits(storage=10**9))
    _, other = keys.add("acme", "user", limits=Limits(requests=500), note="laptop")
    page = read(own_server.url).page
    page.goto("/account")
    page.get_by_label("API key").fill(text)
    page.get_by_label("API key").press("Enter")
    rows = page.get_by_role("region", name="Keys")
    rows.get_by_role("row", name="laptop").get_by_role("button", name="Change").click()
    form = page.get_by_role("dialog", name="Change laptop")
    form.get_by_label("Note").fill("desk")
    form.get_by_text("The same in a terminal").click()
    expect(form.get_by_text("halka keys change")).to_have_text(f"halka keys change {other.id} --note desk")
    form.get_by_role("button", name="Save").click()
    expect(rows.get_by_role("row", name="desk")).to_be_visible()
    assert keys.all()[other.id].limits == Limits(requests=500)


def test_a_user_sees_the_own_use_and_no_keys(own_server, read):
    text, _ = own_server.service.guards.keys.add("acme", "user")
    page = read(own_server.url, viewport={"width": 390, "height": 800}).page
    page.goto("/account")
    page.get_by_label("API key").fill(text)
    page.get_by_label("API key").press("Enter")
    expect(page.get_by_text("Nothing was asked yet")).to_be_visible()
    expect(page.get_by_text("Asks: chats, answers from documents, searches.")).to_be_visible()
    expect(page.get_by_role("button", name="New key")).to_have_count(0)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_what_is_stored_without_a_limit_has_no_share(own_server, read):
    page = read(own_server.url).page
    usage = own_server.client.get("/v1/usage").json()
    usage["storage"] = {"used": 1000, "allowed": None}
    page.route("**/v1/usage", lambda route: route.fulfill(json=usage))
    page.goto("/account")
    expect(page.get_by_text("Stored", exact=True)).to_be_visible()
    expect(page.get_by_role("progressbar")).to_have_count(0)
