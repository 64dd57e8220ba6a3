"""Pages in a real browser; without one, the elements of their markup."""

import re
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest
from browser import CHROMIUM, FAINT, OUTSIDE, OVERLAPS
from html_reader import stands_alone
from model_cases import tiny

import thinkers
from thinkers.inspection.ablate import ablate
from thinkers.inspection.inspect import inspect, inspect_model
from thinkers.inspection.page import write
from thinkers.report import html

in_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium")

HOSTILE = [
    "<script>window.hit = 1</script>",
    "</script><script>window.hit = 1</script>",
    "</style><script>window.hit = 1</script>",
    "</title><img src=x onerror='window.hit = 1'>",
    "<img src=x onerror=window.hit=1>",
    "<svg onload=window.hit=1>",
    "<svg><script>window.hit=1</script></svg>",
    "<iframe srcdoc='<script>parent.hit=1</script>'></iframe>",
    "<body onload=window.hit=1>",
    "<a href='javascript:window.hit=1'>x</a>",
    "<form action=javascript:window.hit=1><input type=submit>",
    "<meta http-equiv=refresh content='0;url=data:text/html,x'>",
    "<base href=https://example.org/>",
    "<link rel=stylesheet href=https://example.org/a.css>",
    "<style>*{display:none}</style>",
    "<math><mtext></p><script>window.hit=1</script>",
    "<details open ontoggle=window.hit=1>",
    "<video><source onerror=window.hit=1>",
    "<object data=data:text/html,x></object>",
    "<embed src=data:text/html,x>",
    "<template><script>window.hit=1</script></template>",
    "<noscript><p title='</noscript><img src=x onerror=window.hit=1>'>",
    "<!--<script>-->",
    "<!-- --!><img src=x onerror=window.hit=1>",
    "<![CDATA[<script>window.hit=1</script>]]>",
    '" onmouseover="window.hit=1',
    "' onfocus='window.hit=1' autofocus='",
    '"><script>window.hit=1</script>',
    "'><b>bold</b>",
    "`-window.hit-`",
    "{{ 7 * 7 }} {% raw %} {{ config }}",
    "{{ ''.__class__.__mro__ }}",
    "${window.hit = 1}",
    "&lt;script&gt;window.hit=1&lt;/script&gt;",
    "&#60;script&#62;",
    "&amp;lt;b&amp;gt;",
    "\\u003cscript\\u003ewindow.hit=1",
    '\\"];window.hit=1;//',
    "</td></tr></table><p>out",
    "<td>in</td>",
    "\x00<b>\x00</b>",
    "\u202e<b>desrever</b>\u202c",
    "\u2028window.hit=1\u2029",
    "\ud800<i>half</i>",
    "\x1b[31m\x1b]0;title\x07",
    "\r\n\r\n<h1>new</h1>",
    "<" * 60 + ">" * 60,
    "a" * 3000,
    "漢字🙂e\u0301" * 9,
    "%3Cscript%3Ewindow.hit=1%3C/script%3E",
]


class Words(thinkers.Task):
    """Each token is one of these strings; a prompt is a choice of them."""

    Config = SimpleNamespace
    max_length, primary_metric = 67, "loss"
    vocab_size = len(HOSTILE)

    def __init__(self, words, one=None):
        super().__init__(SimpleNamespace())
        self.words, self.one = words, one

    def encode(self, text):
        return [0, 1, 2] if text == self.one else list(range(len(self.words)))

    def decode(self, tokens):
        return "".join(self.words[int(x)] for x in tokens)

    def batch(self, *args):
        raise AssertionError

    score = grade = batch


def words_page(path, words, prompt, folder):
    """The inspection of a run of this name, asked this, whose tokens are these words."""
    model = tiny("thoughtsformer", vocab_size=len(words))
    write(path, inspect_model(model, Words(words, prompt), prompt, 2, folder))
    return path.read_text()


class Elements(HTMLParser):
    """The start tags of a page with the names of their attributes."""

    def __init__(self, page):
        super().__init__()
        self.found = []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, tuple(sorted(name for name, _ in attributes))))


def harmless(text):
    return "".join("x" if x.isprintable() and x != " " else x for x in text)


def test_fifty_hostile_strings_add_no_element(tmp_path):
    assert len(HOSTILE) == len(set(HOSTILE)) == 50
    plain = ["w" * (n + 1) for n in range(50)]
    expected = Elements(words_page(tmp_path / "a.html", plain, "asked", "runs/a")).found
    assert len(expected) > 80
    for text in HOSTILE:
        page = words_page(tmp_path / "a.html", plain, text, f"runs/{text}")
        assert Elements(page).found == expected and stands_alone(page)
    page = words_page(tmp_path / "b.html", HOSTILE, "asked", "runs/a")
    assert Elements(page).found == expected and stands_alone(page)


def test_a_page_that_did_not_escape_would_be_noticed(tmp_path, monkeypatch):
    plain = ["w" * (n + 1) for n in range(50)]
    expected = Elements(words_page(tmp_path / "a.html", plain, "asked", "runs/a")).found
    original = html.render

    def careless(template, **values):
        import markupsafe

        raw = markupsafe.Markup
        values = {k: raw(v) if isinstance(v, str) else v for k, v in values.items()}
        return original(template, **values)

    monkeypatch.setattr(html, "render", careless)
    page = words_page(tmp_path / "a.html", plain, HOSTILE[4], "runs/a")
    assert Elements(page).found != expected


def test_the_page_has_every_element_that_the_script_looks_up(tmp_path):
    page = words_page(tmp_path / "a.html", ["a", "b", "c"], "asked", "runs/a")
    script = page[page.rindex("<script>") :]
    ids = set(re.findall(r'find\("(\w+)"\)', script)) | set(
        re.findall(r'getElementById\("(\w+)"', script)
    )
    assert len(ids) > 8
    assert all(f'id="{name}"' in page for name in ids)
    assert 'class="prediction' in page and 'querySelectorAll(".prediction")' in script


# In the browser ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """{name: path} of pages of all kinds."""
    folder = tmp_path_factory.mktemp("pages")
    task = thinkers.build_task("add", max_digits=2)
    sizes = {"vocab_size": task.vocab_size, "max_length": task.max_length, "max_steps": 16}
    found = {}
    for name in thinkers.MODELS:
        model = tiny(name, **sizes)
        steps = 5 if len(model.step_counts) > 1 else None
        seen = inspect((model, task), "12+34=", steps)
        found[name] = folder / f"{name}.html"
        ablation = ablate((model, task), steps, 7) if name == "looped" else None
        write(found[name], seen, ablation)
    letters = [chr(ord("a") + n % 26) * (1 + n // 26) for n in range(50)]
    found["text"] = folder / "text.html"
    model = tiny("thinker", vocab_size=50, max_steps=16)
    inspect((model, Words(letters)), "asked", 16, found["text"])
    return found


EVERY = [*thinkers.MODELS, "text"]


@in_browser
@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("width", [1280, 390])
def test_no_message_no_request_and_nothing_wider_than_the_page(tab, pages, name, width):
    for dark in (False, True):
        tab.open(pages[name], width, dark=dark)
        assert tab.messages == []
        assert [url for url in tab.requests if not url.startswith("data:")] == [
            pages[name].as_uri()
        ]
        assert tab.run("document.documentElement.scrollWidth") <= width
        assert tab.run(OUTSIDE) == []
        assert tab.run(OVERLAPS) == []
        assert tab.run(FAINT) == []


@in_browser
@pytest.mark.parametrize(
    ("check", "spoil"),
    [
        (OUTSIDE, "document.querySelector('h2').style.marginLeft = '-400px'"),
        (OVERLAPS, "document.querySelector('#details').style.marginTop = '-90px'"),
        (FAINT, "document.querySelector('.lead').style.color = 'rgb(150, 150, 150)'"),
    ],
)
def test_a_spoilt_page_would_be_noticed(tab, pages, check, spoil):
    tab.open(pages["looped"])
    assert tab.run(check) == []
    tab.run(spoil)
    assert tab.run(check) != []


def state(tab):
    """(step, marked column, prediction, position) as shown."""
    return tuple(
        tab.run(f"document.querySelector('{node}').textContent")
        for node in ("#number", ".grid th.now", "#predicted", "#place")
    )


@in_browser
@pytest.mark.parametrize("name", ["thinker", "looped"])
def test_the_slider_works_by_keyboard_and_mouse(tab, pages, name):
    tab.open(pages[name])
    texts = tab.run(
        "[...document.querySelectorAll('.prediction')].map((x) => x.lastChild.textContent.trim())"
    )
    assert len(texts) == 5 and state(tab) == ("5 of 5", "5", texts[4], "Position 7, after step 5")
    tab.run("document.getElementById('step').focus()")
    tab.press("ArrowLeft", "ArrowLeft")
    assert state(tab) == ("3 of 5", "3", texts[2], "Position 7, after step 3")
    tab.press("Home")
    assert state(tab)[:2] == ("1 of 5", "1")
    box = tab.run(
        "(() => { const b = document.getElementById('step').getBoundingClientRect();"
        "return [b.left, b.right, (b.top + b.bottom) / 2]; })()"
    )
    left, right, middle = box
    tab.click((left + right) / 2, middle)
    assert state(tab)[:2] == ("3 of 5", "3")
    tab.click(right - 3, middle)
    assert state(tab)[:3] == ("5 of 5", "5", texts[4])
    assert tab.messages == []


@in_browser
def test_figures_follow_the_slider(tab, pages):
    tab.open(pages["thoughtsformer"])
    tab.run("new Promise((done) => setTimeout(done, 300))")

    def drawn():
        return (
            tab.run("document.querySelector('#plane .mine').getAttribute('cx')"),
            tab.run("document.querySelector('.cursor').getAttribute('x')"),
            tab.run("document.querySelector('canvas').toDataURL()"),
            tab.run("document.querySelector('#details').textContent"),
        )

    before = drawn()
    tab.run("document.getElementById('step').focus()")
    tab.press("ArrowLeft")
    assert all(a != b for a, b in zip(before, drawn(), strict=True))
    tab.press("ArrowRight")
    assert drawn() == before
    shares = tab.run(
        "[...document.querySelectorAll('.share')].map((x) => parseFloat(x.textContent))"
    )
    assert sum(shares) == pytest.approx(100, abs=0.11)


@in_browser
def test_the_selected_step_is_a_band_and_a_dot_on_the_curve(tab, pages):
    tab.open(pages["thoughtsformer"])
    tab.run("new Promise((done) => setTimeout(done, 300))")
    shown = tab.run(
        "[...document.querySelectorAll('#charts svg')].map((svg) => {"
        "const box = svg.querySelector('.cursor').getBoundingClientRect();"
        "const dot = svg.querySelector('circle'), x = Number(dot.getAttribute('cx'));"
        "const ends = svg.querySelector('polyline').getAttribute('points').split(' ').at(-1);"
        "return [box.width, box.height, x - ends.split(',')[0], "
        "dot.getAttribute('cy') - ends.split(',')[1]]; })"
    )
    assert len(shown) > 1
    for width, height, across, down in shown:
        assert width > 8 and height > 50 and abs(across) < 0.1 and abs(down) < 0.1
    assert tab.run("document.querySelectorAll('#charts line.cursor').length") == 0


def test_links_lead_to_files_beside_the_page_whatever_their_names(tmp_path):
    names = [
        "runs/a",
        "javascript:window.hit=1",
        "//example.org/x",
        "a?b#c",
        "\ud800",
        "../b",
        *HOSTILE,
    ]
    section = html.Section(rows=[[html.link(name, name)] for name in names])
    html.write_page(tmp_path / "a.html", "a", "b", [section])
    assert stands_alone((tmp_path / "a.html").read_text())


@in_browser
def test_the_table_works_by_keyboard_and_mouse(tab, pages):
    tab.open(pages["thinker"], 390)
    assert tab.run("document.querySelectorAll('#grid td[tabindex=\"0\"]').length") == 1
    tab.run("document.querySelector('#grid td[tabindex=\"0\"]').focus()")
    tab.press("ArrowUp", "ArrowLeft")
    assert state(tab)[1] == "4" and state(tab)[3] == "Position 6, after step 4"
    assert tab.run("document.activeElement.className").endswith("now chosen")
    tab.press("Home")
    assert state(tab)[3] == "Position 6, after step 1"
    x, y = tab.run(
        "(() => { const b = document.querySelector('#grid').rows[2].cells[2];"
        "b.scrollIntoView({block: 'center'}); const r = b.getBoundingClientRect();"
        "return [r.left + r.width / 2, r.top + r.height / 2]; })()"
    )
    tab.click(x, y)
    assert state(tab)[3] == "Position 2, after step 2"
    tab.run(
        "const s = document.getElementById('shade'); s.value = 'moved';"
        "s.dispatchEvent(new Event('change'))"
    )
    kinds = tab.run("[...document.querySelectorAll('#grid td.p0')].map((x) => x.cellIndex)")
    assert kinds.count(1) >= 6  # nothing has moved at the first step
    assert tab.messages == []


@in_browser
def test_the_chosen_step_is_scrolled_into_the_narrow_table(tab, pages):
    tab.open(pages["text"], 390)
    seen = """(() => {
      const head = document.querySelector(".grid th.now").getBoundingClientRect();
      const frame = document.getElementById("frame").getBoundingClientRect();
      return head.left >= frame.left && head.right <= frame.right + 1;
    })()"""
    assert tab.run(seen)
    tab.run("document.getElementById('step').focus()")
    tab.press("Home")
    assert tab.run(seen)
    assert state(tab)[0] == "1 of 16"


@in_browser
def test_light_and_dark_differ(tab, pages):
    grounds = []
    for dark in (False, True):
        tab.open(pages["looped"], dark=dark)
        grounds.append(tab.run("getComputedStyle(document.body).backgroundColor"))
    assert grounds == ["rgb(255, 255, 255)", "rgb(22, 25, 30)"]


def parsed(page):
    """How many elements the browser makes of it."""
    text = html.as_data(page)
    return f"new DOMParser().parseFromString({text}, 'text/html').querySelectorAll('*').length"


@in_browser
def test_hostile_words_and_names_add_no_element_and_run_nothing(tab, tmp_path):
    plain = ["w" * (n + 1) for n in range(50)]
    words_page(tmp_path / "a.html", plain, "asked", "runs/a")
    tab.open(tmp_path / "a.html")
    count = "document.querySelectorAll('*').length"
    expected = tab.run(count)
    words_page(tmp_path / "b.html", HOSTILE, "".join(HOSTILE), "runs/" + "".join(HOSTILE))
    for width in (1280, 390):
        tab.open(tmp_path / "b.html", width)
        assert tab.run("document.querySelectorAll('#grid tbody tr').length") == 3
        assert tab.run("window.hit") is None and tab.messages == []
        assert tab.run("document.documentElement.scrollWidth") <= width
    without = tab.run(parsed((tmp_path / "a.html").read_text()))
    for number, text in enumerate(HOSTILE):
        page = words_page(tmp_path / "c.html", plain, text, f"runs/{text}")
        if number % 10 == 0:
            tab.open(tmp_path / "c.html")
            assert tab.run(count) == expected and tab.run("window.hit") is None
        assert tab.run(parsed(page)) == without


@in_browser
def test_the_browser_blocks_what_a_page_did_not_bring(tab, tmp_path):
    html.write_page(tmp_path / "a.html", "a", "b", [html.Section(text="here")])
    page = (tmp_path / "a.html").read_text()
    bad = "<script>window.hit = 1</script><img src=x onerror='window.hit = 1'><p style='color:red'>"
    (tmp_path / "a.html").write_text(page.replace("here", bad))
    tab.open(tmp_path / "a.html")
    assert tab.run("window.hit") is None
    assert sum("Content Security Policy" in text for text in tab.messages) >= 3
