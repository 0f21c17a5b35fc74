"""The page in a real browser: search by a photo and by a click, settings, keys, a phone, the token, the encoder in the page."""

import numpy as np
import pytest
from encoders import noise
from page_browser import Watched, browser_runtime, chromium, serving
from PIL import Image
from service_index import picture_bytes, serve_images

from benchmarks import latency
from benchmarks.browser import encoder_page
from jax_brcd.export import export
from jax_brcd.search.service.files import browser_files

TOKEN = "correct-horse-battery"


@pytest.fixture(scope="module")
def browser():
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def served(browser, tmp_path_factory):
    return serve_images(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def address(served):
    with serving(served.app()) as address:
        yield address


@pytest.fixture
def seen(browser, address):
    """The page, which complains of nothing and asks no other host for anything."""
    watched = Watched(browser, address)
    yield watched
    assert watched.complaints == [] and watched.outside() == []
    watched.close()


def expected(served, number, k=60):
    """Ids and distances of the nearest of an image, by the store itself."""
    code = served.encoder.encode(served.images[number])
    return [[hit.id, hit.distance] for hit in served.store.search(code, k)[0]]


def upload(seen, served, number):
    content = picture_bytes(served.images[number])
    seen.page.set_input_files("#pick", {"name": "photo.png", "mimeType": "image/png", "buffer": content})


def test_a_photo_is_searched_for_and_a_click_on_a_result_searches_on(served, seen):
    assert "24 images, codes of 20 bits" in seen.page.text_content("#about")
    upload(seen, served, 5)
    assert seen.hits() == expected(served, 5)
    assert "encoded in" in seen.page.text_content("#told") and " ms in all" in seen.page.text_content("#told")
    last = seen.page.locator(".hit").last
    id = last.get_attribute("data-id")
    last.locator("button").click()
    code = served.encoder.encode(served.images[served.ids.index(id)]).packed[0].tobytes().hex()
    seen.wait(f"document.querySelector('.hit').dataset.code === '{code}'")
    assert seen.hits() == expected(served, served.ids.index(id))
    seen.page.go_back()
    seen.wait(f"document.querySelectorAll('.hit')[{len(served.ids) - 1}].dataset.id === '{id}'")
    assert seen.hits() == expected(served, 5)
    seen.wait("[...document.images].every(each => each.complete && each.naturalWidth > 0)")


def test_a_photo_is_dropped_and_pasted(served, seen):
    content = list(picture_bytes(served.images[3]))
    for event, holder in (("drop", "dataTransfer"), ("paste", "clipboardData")):
        seen.page.evaluate("""([content, event, holder]) => {
            const held = new DataTransfer();
            held.items.add(new File([new Uint8Array(content)], "photo.png", { type: "image/png" }));
            const kind = event === "drop" ? DragEvent : ClipboardEvent;
            document.getElementById("hits").replaceChildren();
            document.body.dispatchEvent(new kind(event, { [holder]: held, bubbles: true, cancelable: true }));
        }""", [content, event, holder])
        assert seen.hits() == expected(served, 3)


def test_the_radius_hides_what_is_further_and_the_strip_marks_the_bits_that_differ(served, seen):
    upload(seen, served, 5)
    every = seen.hits()
    radius = every[len(every) // 2][1]
    seen.page.locator("#radius").fill(str(radius))
    assert seen.hits() == [each for each in every if each[1] <= radius] != every
    assert seen.page.text_content("#radius-value") == f"{radius} of 20"
    for _, distance in seen.hits():
        strip = seen.page.locator(f".hit[data-distance='{distance}'] svg").first
        assert strip.get_attribute("aria-label") == f"{distance} of 20 bits differ"
    marks = seen.page.locator(".hit .differs").evaluate_all(
        "all => all.map(each => (each.getAttribute('d').match(/M/g) ?? []).length)")
    assert marks == [distance for _, distance in every]


def test_a_soft_search_is_a_switch(served, seen):
    upload(seen, served, 5)
    seen.hits()
    with seen.page.expect_response(lambda answer: "soft=1" in answer.url):
        seen.page.get_by_role("switch", name="Soft").check()
    hits = served.store.search(served.encoder.logits(served.images[5]), 60, soft=True)[0]
    seen.wait("document.querySelector('.hit .near').textContent.includes('·')")
    assert [id for id, _ in seen.hits()] == [hit.id for hit in hits]


def test_keys_pick_a_photo_walk_the_results_and_search_on(served, seen):
    choosers = []
    seen.page.on("filechooser", lambda chooser: choosers.append(chooser))
    seen.page.wait_for_timeout(300)  # until the browser has been told that choosers are asked for
    seen.page.keyboard.press("/")
    for _ in range(100):
        if not choosers:
            seen.page.wait_for_timeout(50)
    choosers[0].set_files({"name": "photo.png", "mimeType": "image/png", "buffer": picture_bytes(served.images[5])})
    before = seen.hits()
    for key in ("ArrowRight", "ArrowRight", "ArrowRight", "ArrowLeft", "ArrowDown"):
        seen.page.keyboard.press(key)
    id = seen.page.evaluate("document.activeElement.closest('.hit').dataset.id")
    place = [each[0] for each in before].index(id)
    assert place > 2, "one to the right, and a row down"
    with seen.page.expect_response(lambda answer: "/v1/search/codes" in answer.url):
        seen.page.keyboard.press("Enter")
    seen.wait("!document.getElementById('hits').classList.contains('waiting')")
    assert seen.hits() == expected(served, served.ids.index(id))
    assert seen.page.evaluate("document.getElementById('pick').tabIndex") == 0


def test_a_broken_photo_is_told_of_and_the_page_goes_on(served, browser, address):
    seen = Watched(browser, address)  # whose console tells of the status 415
    seen.page.set_input_files("#pick", {"name": "photo.png", "mimeType": "image/png", "buffer": b"no image"})
    seen.page.wait_for_selector("#problem:not([hidden])")
    assert "no image that is read here" in seen.page.text_content("[role=alert]")
    upload(seen, served, 5)
    assert seen.hits() == expected(served, 5) and not seen.page.is_visible("[role=alert]")
    seen.close()


def test_on_a_phone_in_the_dark_nothing_is_wider_than_the_screen(served, browser, address):
    grounds = set()
    for scheme in ("dark", "light"):
        seen = Watched(browser, address, viewport={"width": 360, "height": 740}, color_scheme=scheme, is_mobile=True)
        upload(seen, served, 5)
        seen.hits()
        assert seen.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        grounds.add(seen.page.evaluate("getComputedStyle(document.body).backgroundColor"))
        seen.close()
    assert len(grounds) == 2


def test_a_service_with_a_token_asks_for_it_once_or_takes_it_from_the_address(served, browser):
    with serving(served.app(token=TOKEN)) as address:
        seen = Watched(browser, address, f"/#token={TOKEN}")
        assert seen.page.url == f"{address}/", "the token is out of the address"
        upload(seen, served, 5)
        assert seen.hits() == expected(served, 5)
        seen.wait("document.querySelector('.hit img').naturalWidth > 0")
        assert seen.complaints == []
        seen.close()
        context = browser.new_context()
        page = context.new_page()
        page.goto(address)
        page.fill("#token", TOKEN)
        page.click("dialog button")
        page.get_by_text("24 images").wait_for()
        context.close()


@pytest.fixture(scope="module")
def exported(served, tmp_path_factory):
    """The folder of the encoder's export to ONNX."""
    pytest.importorskip("onnxscript", reason="needs the packages that export to ONNX")
    folder = tmp_path_factory.mktemp("onnx")
    export(served.encoder, "onnx", folder)
    return folder


@pytest.fixture(scope="module")
def student(served, exported):
    """The page of a service whose encoder runs in the browser."""
    with serving(served.app(browser=browser_files(exported, browser_runtime(), served.store))) as address:
        yield address


def odd_images(served):
    """Files whose pixels a browser must read as Python does, each with what it is of."""
    image = noise(90, 61, seed=3)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    glass = np.concatenate([image, noise(90, 61, seed=4)[..., :1]], axis=-1)
    return {"small": (picture_bytes(served.images[5]), served.images[5]), "tall": (picture_bytes(image), image),
            "turned": (picture_bytes(np.rot90(image).copy(), exif=exif), image),
            "gray": (picture_bytes(image[..., 0]), np.repeat(image[..., :1], 3, axis=-1)),
            "glass": (picture_bytes(Image.fromarray(glass)), image),
            "large": (picture_bytes(large := noise(700, 1100, seed=6)), large)}


def test_the_encoder_in_the_page_gives_pythons_bits_and_no_photo_leaves_it(served, browser, student):
    seen = Watched(browser, student)
    assert "stays on this machine" in seen.page.text_content("#where")
    for name, (content, pixels) in odd_images(served).items():
        code = served.encoder.encode(pixels).packed[0]
        with seen.page.expect_request("**/v1/search/codes?*", timeout=60_000) as asked:
            seen.page.set_input_files("#pick", {"name": f"{name}.png", "mimeType": "image/png", "buffer": content})
        assert asked.value.post_data_buffer == code.tobytes(), name
        seen.wait("document.querySelector('#told').textContent.includes('encoded in')")
        assert seen.hits() == [[hit.id, hit.distance] for hit in served.store.search(served.encoder.encode(pixels), 60)[0]]
    assert "in this browser" in seen.page.text_content("#told") and seen.page.is_disabled("#soft")
    sent = [each.post_data_buffer for each in seen.requests if each.method == "POST"]
    assert len(sent) == len(odd_images(served)) and {len(each) for each in sent} == {3}
    assert seen.complaints == [] and seen.outside() == []
    seen.close()


def test_a_photo_that_is_encoded_late_is_not_another_querys(served, browser, student):
    seen, held = Watched(browser, student), []
    seen.page.uncheck("#here")
    upload(seen, served, 5)
    assert seen.hits() == expected(served, 5)
    seen.page.check("#here")
    seen.page.route("**/v1/encoder.onnx", lambda route: held.append(route))  # without which no photo is encoded
    seen.page.set_input_files("#pick", {"name": "late.png", "mimeType": "image/png", "buffer": picture_bytes(served.images[7])})
    last = seen.page.locator(".hit").last
    number = served.ids.index(last.get_attribute("data-id"))
    assert number != 7
    with seen.page.expect_request("**/v1/search/codes?*"):
        last.locator("button").click()
    assert seen.hits() == expected(served, number)
    code = served.encoder.encode(served.images[7]).packed.tobytes()
    with seen.page.expect_request(lambda request: request.method == "POST" and request.post_data_buffer == code):
        held[0].continue_()
    seen.page.go_back()
    seen.page.go_forward()
    assert seen.hits() == expected(served, number)
    seen.close()


def test_a_page_of_the_benchmarks_gives_an_exports_codes_and_tells_its_seconds(served, browser, exported):
    squares, photo = noise(3, 32, 32), latency.photo(60, 80)
    with encoder_page(browser, exported, browser_runtime(), photo, 32, threads=2) as page:
        of_its_size = latency.of_its_size(served.encoder)
        np.testing.assert_array_equal(page.codes(squares), of_its_size.encode(squares).packed)
        apart = np.bitwise_count(page.query() ^ served.encoder.encode(latency.decode(photo)).packed).sum()
        assert apart <= 1, "another decoder of JPEG"
        assert 0 < page.encode() < 60 and 0 < page.seconds < 60
