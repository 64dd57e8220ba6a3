"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const find = (id) => document.getElementById(id);
  const slider = find("step"), steps = data.steps, positions = data.positions;
  const rows = [...find("grid").tBodies[0].rows];
  const cells = rows.map((row) => [...row.cells].slice(1, steps + 1));
  const heads = [...find("grid").tHead.rows[0].cells].slice(1, steps + 1);
  const buttons = [...document.querySelectorAll(".prediction")];
  const dark = matchMedia("(prefers-color-scheme: dark)");
  let step = steps - 1, place = data.place;

  const make = (parent, name, attributes = {}, text) => {
    const svg = /^(svg|g|circle|polyline|line|rect|text|title)$/.test(name);
    const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", name)
                     : document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text !== undefined) node.textContent = text;
    return parent.appendChild(node);
  };
  const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;
  const asked = (values) => values.slice(data.first);
  const short = (x) => (x === 0 ? "0" : Math.abs(x) >= 100 ? x.toFixed(0) : x.toPrecision(3));
  const tick = (x) => (x === 0 || Math.abs(x) >= 100 ? x.toFixed(0) : x.toPrecision(2));

  // The selected position -------------------------------------------------------------------

  const details = find("details");
  const showDetails = () => {
    find("place").textContent = `Position ${place + 1}, after step ${step + 1}`;
    details.replaceChildren();
    const read = make(details, "p", {}, "token ");
    make(read, "span", { class: "token" }, positions[place]);
    const table = make(details, "table"), body = make(table, "tbody");
    data.tops[step][place].forEach((token, rank) => {
      const chance = data.chances[step][place][rank], row = make(body, "tr");
      make(row, "td", { class: "token" }, data.labels[token]);
      make(make(row, "td"), "meter", { min: 0, max: 1, value: chance,
        "aria-label": `probability of ${data.labels[token]}` });
      make(row, "td", {}, chance.toFixed(3));
    });
    const list = make(details, "dl");
    const facts = [["entropy", `${data.entropy[step][place].toFixed(2)} bits`]];
    if (step) {
      facts.push(["change", `${short(data.distance[step][place])}, ` +
        `${(100 * data.moved[step][place]).toFixed(1)} % of the norm`]);
      facts.push(["cosine with the step before", `${data.cosine[step][place].toFixed(4)}`]);
    }
    for (const [name, value] of facts) {
      make(list, "dt", {}, name);
      make(list, "dd", {}, value);
    }
  };

  // The table -------------------------------------------------------------------------------

  const shades = {
    chance: (s, p) => data.chances[s][p][0],
    entropy: (s, p) => data.entropy[s][p] / data.most_entropy,
    moved: (s, p) => data.moved[s][p] / data.most_moved,
  };
  const paint = () => {
    const shade = shades[find("shade").value];
    cells.forEach((row, p) => row.forEach((cell, s) => {
      const level = Math.max(0, Math.min(9, Math.floor(10 * shade(s, p))));
      cell.classList.remove(...[...cell.classList].filter((name) => /^p\d$/.test(name)));
      cell.classList.add(`p${level}`);
    }));
  };
  const mark = () => {
    for (const node of find("grid").querySelectorAll(".now, .chosen")) {
      node.classList.remove("now", "chosen");
      if (node.tabIndex === 0) node.tabIndex = -1;
    }
    buttons.forEach((button, s) => {
      button.classList.toggle("now", s === step);
      button.setAttribute("aria-pressed", String(s === step));
    });
    heads[step].classList.add("now");
    cells.forEach((row) => row[step].classList.add("now"));
    cells[place][step].classList.add("chosen");
    cells[place][step].tabIndex = 0;
  };

  const intoView = () => {
    const frame = find("frame"), cell = cells[place][step], names = rows[place].cells[0];
    const left = cell.offsetLeft - names.offsetWidth, top = cell.offsetTop - heads[0].offsetHeight;
    const right = cell.offsetLeft + cell.offsetWidth - frame.clientWidth;
    const bottom = cell.offsetTop + cell.offsetHeight - frame.clientHeight;
    frame.scrollLeft = Math.max(right, Math.min(left, frame.scrollLeft));
    frame.scrollTop = Math.max(bottom, Math.min(top, frame.scrollTop));
  };

  // The plane -------------------------------------------------------------------------------

  const plane = find("plane"), all = data.plane.flat();
  const range = (axis) => {
    const values = all.map((point) => point[axis]);
    const low = values.reduce((a, b) => Math.min(a, b)), high = values.reduce((a, b) => Math.max(a, b));
    return [low, high - low || 1];
  };
  const [xs, ys] = [range(0), range(1)];
  const at = ([x, y]) => [14 + 292 * (x - xs[0]) / xs[1], 226 - 212 * (y - ys[0]) / ys[1]];
  const path = make(plane, "polyline");
  const dots = positions.map((label) => {
    const dot = make(plane, "circle", { r: 4 });
    make(dot, "title", {}, label);
    return dot;
  });
  const showPlane = () => {
    dots.forEach((dot, p) => {
      const [x, y] = at(data.plane[step][p]);
      dot.setAttribute("cx", x.toFixed(1));
      dot.setAttribute("cy", y.toFixed(1));
      dot.setAttribute("class", p === place ? "mine" : "");
      dot.setAttribute("r", p === place ? 6 : 4);
    });
    path.setAttribute("points", data.plane.slice(0, step + 1)
      .map((points) => at(points[place]).map((x) => x.toFixed(1)).join(",")).join(" "));
  };

  // The charts --------------------------------------------------------------------------------

  const last = data.tops[steps - 1].map((tokens) => tokens[0]);
  const settled = data.tops.map((row) => row.map((tokens, p) => Number(tokens[0] === last[p])));
  const charts = [
    ["entropy in bits", data.entropy, 0],
    ["relative change of the state", data.moved, 1],
    ["cosine with the step before", data.cosine, 1],
    ["share of positions with the final prediction", settled, 0],
  ].filter(([, , from]) => steps - from > 1).map(([name, values, from]) => {
    const figure = make(find("charts"), "figure");
    make(figure, "figcaption", {}, name);
    const shown = values.slice(from);
    const means = shown.map((row) => mean(asked(row)));
    const everything = shown.flatMap(asked);
    const svg = make(figure, "svg", { viewBox: "0 0 260 130", role: "img",
      "aria-label": `${name}: ${means.map(short).join(", ")}` });
    const low = Math.min(0, everything.reduce((a, b) => Math.min(a, b)));
    const high = everything.reduce((a, b) => Math.max(a, b)) || 1;
    const x = (s) => 40 + 210 * (s - from) / (steps - 1 - from);
    const y = (value) => 108 - 98 * (value - low) / (high - low || 1);
    for (const value of [low, high]) {
      make(svg, "line", { x1: 40, x2: 250, y1: y(value), y2: y(value) });
      make(svg, "text", { x: 35, y: y(value) + 4, "text-anchor": "end" }, tick(value));
    }
    make(svg, "text", { x: x(from), y: 125, "text-anchor": "middle" }, from + 1);
    make(svg, "text", { x: x(steps - 1), y: 125, "text-anchor": "middle" }, steps);
    // A band behind the curves, for a line would look like a fall of the curve.
    const cursor = make(svg, "rect", { class: "cursor", y: 6, width: 12, height: 106, rx: 3 });
    const line = (pick) => shown
      .map((row, i) => `${x(i + from).toFixed(1)},${y(pick(row)).toFixed(1)}`).join(" ");
    make(svg, "polyline", { points: line((row) => mean(asked(row))) });
    const dot = make(svg, "circle", { r: 3.5 });
    const mine = make(svg, "polyline", { class: "mine" });
    return () => {
      const now = Math.max(step, from);
      cursor.setAttribute("x", x(now) - 6);
      dot.setAttribute("cx", x(now));
      dot.setAttribute("cy", y(means[now - from]));
      mine.setAttribute("points", line((row) => row[place]));
    };
  });

  // Attention -----------------------------------------------------------------------------------

  const canvases = [...document.querySelectorAll("canvas")];
  const maps = data.attention.map(() => null);
  const unpack = async (text) => {
    const bytes = Uint8Array.from(atob(text), (x) => x.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  };
  const showMap = (index) => {
    const { rows: height, columns: width, shares } = data.attention[index], map = maps[index];
    const share = document.querySelector(`.share[data-map="${index}"]`);
    share.textContent = `${(100 * shares[step][place]).toFixed(1)} % of the weight at the selected position`;
    if (!map) return;
    const canvas = canvases[index], pen = canvas.getContext("2d");
    const image = new ImageData(width, height);
    const ink = dark.matches ? [124, 188, 245] : [27, 103, 171];
    for (let i = 0; i < width * height; i++) {
      image.data.set(ink, 4 * i);
      image.data[4 * i + 3] = map[step * width * height + i];
    }
    const small = Object.assign(document.createElement("canvas"), { width, height });
    small.getContext("2d").putImageData(image, 0, 0);
    const { cell, left, below } = layouts[index], style = getComputedStyle(document.body);
    pen.clearRect(0, 0, canvas.width, canvas.height);
    pen.imageSmoothingEnabled = false;
    pen.drawImage(small, left, 0, cell * width, cell * height);
    pen.strokeStyle = style.getPropertyValue("--warm");
    const side = positions.length / height;
    pen.strokeRect(left + 0.5, Math.floor(place / side) * cell + 0.5, cell * width - 1, cell - 1);
    pen.fillStyle = style.color;
    pen.font = "11px ui-monospace, monospace";
    pen.textBaseline = "middle";
    if (!left) return;
    pen.textAlign = "right";
    positions.forEach((text, p) => pen.fillText(text.slice(0, 7), left - 4, (p + 0.5) * cell));
    pen.textAlign = "center";
    for (let n = 0; below && n < width; n++) {
      const text = width === height ? positions[n].slice(0, 2) : String(n + 1);
      pen.fillText(text, left + (n + 0.5) * cell, cell * height + 9);
    }
  };
  const layouts = data.attention.map(({ rows: height, columns: width }) => {
    const cell = Math.max(1, Math.min(22, Math.floor(384 / Math.max(width, height))));
    const named = cell >= 11 && height === positions.length;
    return { cell, left: named ? 54 : 0, below: named ? 18 : 0 };
  });
  data.attention.forEach(({ rows: height, columns: width, weights }, index) => {
    const { cell, left, below } = layouts[index];
    Object.assign(canvases[index], { width: left + cell * width, height: cell * height + below });
    unpack(weights).then((map) => { maps[index] = map; showMap(index); });
  });

  // Everything ----------------------------------------------------------------------------------

  const show = () => {
    slider.value = step + 1;
    find("number").textContent = `${step + 1} of ${steps}`;
    find("predicted").textContent = data.predictions[step];
    mark();
    intoView();
    showDetails();
    showPlane();
    for (const node of document.querySelectorAll("[data-step]")) {
      node.classList.toggle("now", Number(node.dataset.step) === step + 1);
    }
    charts.forEach((draw) => draw());
    maps.forEach((_, index) => showMap(index));
  };
  const go = (toStep, toPlace) => {
    step = Math.max(0, Math.min(steps - 1, toStep));
    place = Math.max(0, Math.min(positions.length - 1, toPlace));
    show();
  };
  slider.addEventListener("input", () => go(Number(slider.value) - 1, place));
  buttons.forEach((button, s) => button.addEventListener("click", () => go(s, place)));
  find("shade").addEventListener("change", paint);
  find("grid").addEventListener("click", (event) => {
    const cell = event.target.closest("td[tabindex]");
    if (cell) go(cell.cellIndex - 1, rows.indexOf(cell.parentNode));
  });
  const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1],
                  Home: [-Infinity, 0], End: [Infinity, 0] };
  find("grid").addEventListener("keydown", (event) => {
    const move = moves[event.key];
    if (!move) return;
    event.preventDefault();
    go(step + move[0], place + move[1]);
    cells[place][step].focus({ preventScroll: true });
  });
  dark.addEventListener("change", show);
  show();
})();
