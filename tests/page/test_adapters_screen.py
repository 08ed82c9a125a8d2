"""Adapters: loaded and pinned, replaced, downloaded and deleted; one that is damaged says why."""

from __future__ import annotations

import re
import shutil

import pytest
from playwright.sync_api import Route, expect

from browser_for_tests import reading
from conversing_for_tests import ask
from serving_for_tests import Running


@pytest.fixture(scope="module")
def shelf(base, store, tmp_path_factory):
    """A server with a store of its own, one of whose adapters is damaged; and the files of a whole one."""
    copy = tmp_path_factory.mktemp("shelf") / "store"
    shutil.copytree(store, copy)
    shutil.copytree(store / "prefix", copy / "broken")
    (copy / "broken" / "1" / "halka.json").write_text("{")
    with Running(base, copy, tmp_path_factory.mktemp("shelved")) as running:
        yield running, sorted((store / "lora" / "1").iterdir())


def test_an_adapter_is_loaded_replaced_downloaded_and_deleted(read, shelf):
    running, files = shelf
    page = read(running.url).page
    page.goto("/adapters")
    broken = page.get_by_role("article", name="broken")
    expect(broken.get_by_role("alert").locator("[lang=en]")).to_contain_text(
        "halka.json is not a Card that this version reads"
    )
    expect(broken.get_by_role("link", name="Try")).to_have_count(0)

    page.get_by_role("link", name="Details of lora").press("Enter")
    page.wait_for_url("**/adapters/lora")
    page.get_by_role("button", name="Load").click()
    expect(page.get_by_text("It is in memory")).to_be_visible()
    page.get_by_role("button", name="Pin").click()
    expect(page.get_by_text("It stays in memory until")).to_be_visible()
    page.get_by_role("button", name="Unpin").click()
    page.get_by_role("button", name="Unload").click()
    expect(page.get_by_text("It is on the disk")).to_be_visible()
    page.get_by_role("button", name="Tags").click()
    tags = page.get_by_role("dialog", name="Tags of lora")
    tags.get_by_label("Tags").fill("#live, <b>")
    tags.get_by_role("button", name="Save").click()
    expect(tags.get_by_role("alert")).to_contain_text("tags")
    tags.get_by_label("Tags").fill("#live ঘর")
    tags.get_by_role("button", name="Save").click()
    expect(tags).to_have_count(0)
    page.get_by_role("button", name="Tags").click()
    tags.get_by_label("Tags").fill("#live")
    tags.get_by_text("The same in a terminal").click()
    expect(tags.get_by_text("halka adapters tag lora live")).to_contain_text("tag lora 'ঘর' --remove --store adapters")
    tags.get_by_role("button", name="Cancel").click()
    page.get_by_role("link", name="#live").click()
    page.wait_for_url("**/adapters?find=%23live")
    expect(page.get_by_role("article")).to_have_count(1)
    page.get_by_label("Find an adapter").fill("lora <b>")
    expect(page.get_by_text("None is like this")).to_be_visible()
    page.get_by_label("Find an adapter").fill("")
    expect(page.get_by_role("article", name="bottleneck")).to_be_visible()
    page.goto("/adapters/lora")
    with page.expect_download() as download:
        page.get_by_role("link", name="Download", exact=True).click()
    assert download.value.suggested_filename == "lora-1.zip"

    page.get_by_role("button", name="Replace").click()
    upload = page.get_by_role("dialog", name="Replace lora")
    upload.get_by_role("button", name="Upload").click()
    expect(upload.get_by_text("Choose its files.")).to_be_visible()
    upload.get_by_label("Choose files").set_input_files(files)
    upload.get_by_role("button", name="Upload").click()
    expect(upload).to_have_count(0)
    expect(page.get_by_role("link", name="Download version 2")).to_be_visible()
    heading, versions = page.get_by_role("heading", level=1), page.get_by_role("region", name="Versions")
    expect(heading).to_have_text("lora, version 2")
    versions.get_by_role("link", name="1", exact=True).click()
    expect(heading).to_have_text("lora, version 1")
    expect(versions.get_by_role("row").filter(has_text="shown here")).to_contain_text("1")
    expect(page.get_by_text("Version 2 answers to the name alone; this one answers as lora@1.")).to_be_visible()
    page.get_by_role("link", name="Try lora@1 beside lora").click()
    page.wait_for_url("**/playground?model=lora&model=lora%401")
    ask(page, "Who are you?")
    for model in ("lora", "lora@1"):
        expect(
            page.get_by_role("article", name=f"Answer of {model}", exact=True).get_by_title("Length")
        ).to_be_visible()
    page.go_back()
    versions.get_by_role("link", name="2", exact=True).click()
    expect(heading).to_have_text("lora, version 2")
    expect(page.get_by_role("link", name="Try lora")).to_be_visible()
    page.get_by_text("The same in a terminal").last.click()
    expect(page.get_by_text("halka adapters remove lora --version 2 --store adapters")).to_be_visible()
    page.get_by_role("button", name="Delete version 1").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete version 1").click()
    page.wait_for_url("**/adapters")

    page.get_by_role("link", name="Try lora beside the base").click()
    page.wait_for_url("**/playground?model=tiny&model=lora")
    page.goto("/adapters/lora")
    page.get_by_role("button", name="Delete", exact=True).click()
    page.get_by_role("dialog", name="Delete lora?").get_by_role("button", name="Delete lora").click()
    expect(page.get_by_role("article", name="bottleneck")).to_be_visible()
    expect(page.get_by_role("article", name="lora")).to_have_count(0)
    assert "lora" not in running.service.tenants.of("main").store.names()


def test_a_card_shows_base_and_curve(read, shelf):
    running, _ = shelf
    page = read(running.url).page
    listed = running.client.get("/v1/adapters").json()
    listed["data"][0] |= {"losses": [2.25, 1.5, 0.5], "base": "<b>tiny"}
    page.route("**/v1/adapters?*", lambda route: route.fulfill(json=listed))
    page.goto("/adapters")
    card = page.get_by_role("article", name=listed["data"][0]["id"])
    expect(card.locator("svg.spark polyline")).to_have_attribute("points", "2.0,2.0 48.0,10.6 94.0,22.0")
    expect(card.get_by_role("definition").filter(has_text="2.25 to 0.5")).to_be_visible()
    expect(card.get_by_role("definition").filter(has_text="<b>tiny")).to_be_visible()


def test_a_card_with_an_odd_date_is_shown_and_a_failure_stays_at_its_address(read, shelf):
    running, _ = shelf
    page = read(running.url).page
    whole = running.client.get("/v1/adapters/prefix").json()
    odd = {"trained_at": "last week", "training": {"steps": 1}}
    page.route("**/v1/adapters/prefix", lambda route: route.fulfill(json=whole | odd))
    page.goto("/adapters/prefix")
    expect(page.get_by_role("definition").get_by_text("last week", exact=True)).to_be_visible()
    expect(page.get_by_role("button", name="Delete", exact=True)).to_be_visible()
    page.route("**/v1/adapters/prefix", lambda route: route.fulfill(json=whole | {"versions": None}))
    page.reload()
    expect(page.get_by_role("alert")).to_contain_text("Something on this page went wrong")
    page.get_by_role("link", name="Adapters").click()
    expect(page.get_by_role("article", name="prefix")).to_be_visible()


def test_merges_are_of_this_version_and_not_of_a_deleted_one_of_its_number(read, shelf):
    running, _ = shelf
    page = read(running.url).page
    since = running.client.get("/v1/adapters/prefix").json()["created_at"]
    merge = {"kind": "merge", "status": "done", "files": {}, "error": None, "adapter": None, "result": {}}
    merges = [
        merge | {"id": "own", "created_at": since, "settings": {"adapter": "prefix@1", "format": "vllm"}},
        merge | {"id": "of-the-name", "created_at": since, "settings": {"adapter": "prefix", "format": "gguf"}},
        merge | {"id": "of-before", "created_at": since - 1, "settings": {"adapter": "prefix@1", "format": "peft"}},
    ]
    page.route("**/v1/jobs", lambda route: route.fulfill(json={"object": "list", "data": merges}))
    page.goto("/adapters/prefix")
    downloads = page.locator("article.merged").get_by_role("link", name="Download")
    expect(downloads).to_have_attribute("href", "/v1/jobs/own/archive")


def test_what_ends_late_leaves_the_reader_where_they_are(read, shelf):
    """A pin ends when another version is shown, a deletion when another screen is."""
    running, _ = shelf
    page = read(running.url).page
    whole = running.client.get("/v1/adapters/prefix").json() | {"versions": [1, 2]}
    held = dict[str, Route]()

    def answer(route: Route) -> None:
        version = int((re.findall(r"version=(\d+)", route.request.url) or [2])[0])
        route.fulfill(json=whole | {"version": version})

    page.route(re.compile(r"/v1/adapters/prefix(\?.*)?$"), lambda route: (
        held.update({"delete": route}) if route.request.method == "DELETE" else answer(route)
    ))  # fmt: skip
    page.route("**/v1/adapters/prefix/pin", lambda route: held.update(pin=route))
    page.goto("/account")
    page.get_by_role("link", name="Adapters").click()
    page.get_by_role("link", name="Details of prefix").click()
    versions, heading = page.get_by_role("region", name="Versions"), page.get_by_role("heading", level=1)
    versions.get_by_role("link", name="1", exact=True).click()
    expect(heading).to_have_text("prefix, version 1")
    with page.expect_request("**/pin"):
        page.get_by_role("button", name="Pin").click()
    versions.get_by_role("link", name="2", exact=True).click()
    expect(heading).to_have_text("prefix, version 2")
    with page.expect_response(re.compile(r"/prefix\?version=")) as asked_again:
        held["pin"].fulfill(json={})
    assert asked_again.value.url.endswith("?version=2")

    page.get_by_role("button", name="Delete", exact=True).click()
    with page.expect_request(lambda request: request.method == "DELETE"):
        page.get_by_role("dialog").get_by_role("button", name="Delete prefix").click()
    page.evaluate("history.go(-4)")
    expect(heading).to_have_text("Account")
    with page.expect_response(lambda response: response.request.method == "DELETE"):
        held["delete"].fulfill(json={})
    page.evaluate("fetch('/v1/session').then((answer) => answer.json())")
    assert page.url == f"{running.url}/account"


def test_an_upload_that_is_none_says_why(read, shelf):
    running, files = shelf
    page = read(running.url, viewport={"width": 390, "height": 800}).page
    page.goto("/adapters")
    expect(page.get_by_role("article").first).to_be_visible()
    sent = list[str]()
    page.route("**/v1/adapters", lambda route: sent.append(route.request.url))
    page.get_by_role("button", name="Upload").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Name").fill("mine")
    dialog.get_by_label("Name").hover()
    page.mouse.down()
    page.mouse.move(2, 2)
    page.mouse.up()
    expect(dialog.get_by_label("Name")).to_have_value("mine")
    dialog.get_by_label("Choose files").set_input_files(files)
    dialog.get_by_label("Name").fill("prefix")
    expect(dialog.get_by_text("There is an adapter prefix: this becomes its next version.")).to_be_visible()
    dialog.get_by_label("Name").fill("a b")
    dialog.get_by_role("button", name="Upload").click()
    expect(dialog.get_by_text("a letter or digit first and no dot last")).to_be_visible()
    expect(dialog.get_by_label("Name")).to_have_attribute("aria-invalid", "true")
    assert sent == []
    dialog.get_by_label("Name").fill("mine")
    with page.expect_request("**/v1/adapters"):
        dialog.get_by_role("button", name="Upload").click()
    expect(dialog.get_by_role("progressbar")).to_be_visible()
    page.mouse.click(2, 2)
    page.keyboard.press("Escape")
    expect(dialog.get_by_role("progressbar")).to_be_visible()
    with page.expect_event("requestfailed"):
        dialog.get_by_role("button", name="Cancel").click()
    page.unroute_all(behavior="ignoreErrors")
    page.get_by_role("button", name="Upload").click()
    dialog.get_by_label("Name").fill("mine")
    dialog.get_by_label("Choose files").set_input_files(
        [{"name": "adapter_model.bin", "mimeType": "application/octet-stream", "buffer": b"pickle"}]
    )
    dialog.get_by_role("button", name="Upload").click()
    expect(dialog.get_by_role("alert")).to_contain_text("'adapter_model.bin' is no file of an adapter")
    dialog.get_by_role("button", name="Leave adapter_model.bin out").click()
    dialog.get_by_label("Choose files").set_input_files(files)
    dialog.get_by_role("button", name="Upload").click()
    page.wait_for_url("**/adapters/mine")
    expect(page.get_by_role("heading", level=1)).to_have_text("mine")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_many_adapters_come_in_pages(browser, base, store, tmp_path):
    shelf = tmp_path / "store"
    for number in range(50):
        shutil.copytree(store / "lora", shelf / f"a{number:02}")
    with Running(base, shelf, tmp_path / "data") as running, reading(browser, running.url) as reader:
        page = reader.page
        page.goto("/adapters")
        expect(page.get_by_role("article")).to_have_count(48)
        page.get_by_role("button", name="Next").click()
        page.wait_for_url("**/adapters?from=49")
        expect(page.get_by_role("article")).to_have_count(2)
        page.get_by_label("Find an adapter").fill("a1")
        expect(page.get_by_role("article")).to_have_count(10)
        expect(page.get_by_role("article", name="a19")).to_be_visible()
        expect(page.get_by_label("Find an adapter")).to_be_focused()
