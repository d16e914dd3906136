
"use strict";
(() => {
  const SVG = "http://www.w3.org/2000/svg";
  const ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
  const NOTHING = 0, UNKNOWN = 511, LOWEST = 1, HIGHEST = 510, OCTAVES = 9;
  const BINS = [0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.9, 1.1, 1.4, 1.8, 2.5, 3.5, 5, 6.5, 8];

  const unpack = (text) => {
    const found = new Uint16Array((text.length / 3) * 2);
    for (let i = 0, at = 0; i < text.length; i += 3) {
      const n = (ALPHABET.indexOf(text[i]) << 12) | (ALPHABET.indexOf(text[i + 1]) << 6) | ALPHABET.indexOf(text[i + 2]);
      found[at++] = n >> 9;
      found[at++] = n & 511;
    }
    return found;
  };
  const along = (level) => (level - LOWEST) / (HIGHEST - LOWEST);
  const valueOf = (data, level) => {
    if (level === UNKNOWN) return null;
    if (data.scale === "ratio") return level === NOTHING ? 0 : 2 ** (along(level) * 2 * OCTAVES - OCTAVES);
    return data.low + along(level) * (data.high - data.low);
  };
  const shade = (data, level) => {
    if (level === UNKNOWN) return "cx";
    const value = valueOf(data, level);
    if (data.scale === "ratio") {
      if (value === 0) return "c0";
      const bin = BINS.findIndex((end) => value < end);
      return "c" + (bin < 0 ? 15 : bin);
    }
    return "c" + Math.min(15, Math.floor(along(level) * 16));
  };
  // Packed values are exact to about 1%: two digits, and said so.
  const short = (value) => value === null ? "not known" : value === 0 ? "0" : "about " + (Math.abs(value) >= 100 ? value.toFixed(0) : value.toPrecision(2));
  const make = (name, attributes, parent) => {
    const found = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) found.setAttribute(key, value);
    if (parent) parent.append(found);
    return found;
  };
  const element = (name, text, parent) => {
    const found = document.createElement(name);
    if (text !== "") found.textContent = text;
    if (parent) parent.append(found);
    return found;
  };

  for (const figure of document.querySelectorAll("figure.map")) {
    const data = JSON.parse(figure.querySelector("script").textContent);
    const rows = data.rows.length, columns = data.columns;
    const frames = data.packed.map(unpack);
    const grid = figure.querySelector(".grid"), slider = figure.querySelector("input[type=range]");
    const readout = figure.querySelector(".readout"), out = figure.querySelector("output");
    const sorted = figure.querySelector("input[type=checkbox]"), place = figure.querySelector(".expert");
    const wide = Math.max(6, Math.min(44, Math.floor(1000 / columns))), high = Math.max(9, Math.min(26, Math.floor(560 / rows)));
    const left = 14 + 7 * Math.max(...data.short.map((s) => s.length)), top = 16;
    const svg = make("svg", { width: left + columns * wide + 2, height: top + rows * high + 2, viewBox: `0 0 ${left + columns * wide + 2} ${top + rows * high + 2}`, "aria-hidden": "true" });
    const every = Math.ceil(rows / Math.max(1, Math.floor((rows * high) / 13)));
    data.short.forEach((name, row) => {
      if (row % every === 0) make("text", { x: left - 6, y: top + row * high + high / 2 + 3.5, "text-anchor": "end" }, svg).textContent = name;
    });
    const step = columns <= 16 ? 1 : Math.ceil(columns / 16);
    for (let c = 0; c < columns; c += step) make("text", { x: left + c * wide + wide / 2, y: 11, "text-anchor": "middle" }, svg).textContent = c;
    const cells = [];
    for (let r = 0; r < rows; r++) for (let c = 0; c < columns; c++) cells.push(make("rect", { x: left + c * wide, y: top + r * high, width: wide, height: high }, svg));
    grid.append(svg);
    let frame = Number(slider.value), row = 0, column = 0, order = [];

    const flags = (r, e) => {
      const newest = frame === frames.length - 1, has = (name) => newest && data[name][r] && data[name][r].includes(e);
      return has("marks") ? "dead" : has("suspects") ? "sus" : "";
    };
    const draw = () => {
      const levels = frames[frame];
      out.textContent = data.frames[frame];
      slider.setAttribute("aria-valuetext", data.frames[frame]);
      for (let r = 0; r < rows; r++) {
        const own = [...Array(columns).keys()];
        const rank = (e) => (levels[r * columns + e] === UNKNOWN ? -1 : levels[r * columns + e]);
        if (sorted && sorted.checked) own.sort((a, b) => rank(b) - rank(a) || a - b);
        order[r] = own;
        own.forEach((e, c) => cells[r * columns + c].setAttribute("class", `${shade(data, levels[r * columns + e])} ${flags(r, e)}`));
      }
    };
    const tell = () => {
      const e = order[row][column], value = valueOf(data, frames[frame][row * columns + e]);
      let words = `${data.rows[row]}, ${data.of} ${e}: ${short(value)} ${data.unit} (${data.frames[frame]})`;
      const kind = flags(row, e);
      if (kind) words += kind === "dead" ? `; ${data.mark}` : `; ${data.suspect}`;
      if (frame === frames.length - 1 && data.masked[row] && data.masked[row].includes(e)) words += `; ${data.mask}`;
      readout.textContent = words;
      figure.querySelectorAll("rect.cur").forEach((cell) => cell.classList.remove("cur"));
      cells[row * columns + column].classList.add("cur");
    };
    const open = () => {
      if (!data.domains) return;
      const e = order[row][column], at = row * columns + e;
      place.replaceChildren();
      const card = element("article", "", place);
      card.className = "card";
      element("h3", `${data.rows[row]}, expert ${e}`, card);
      const list = element("dl", "", card);
      const fact = (name, words) => { element("dt", name, list); element("dd", words, list); };
      frames.forEach((levels, i) => fact(data.frames[i], `load ${short(valueOf(data, levels[at]))} ${data.unit}`));
      data.domains.forEach((name, i) => fact(name, `load ${short(valueOf(data, unpack(data.by_domain[i])[at]))} ${data.unit}, newest checkpoint`));
      if (data.fisher) fact("Fisher", `trace ${short(valueOf(data, unpack(data.fisher)[at]))} × the mean of its layer, newest checkpoint`);
      const kind = frames.length - 1 === frame ? flags(row, e) : "";
      if (kind) fact("note", kind === "dead" ? data.mark : data.suspect);
      fact("nearest", "moegeo experts RUN shows which expert has the most similar function");
    };
    const pick = (event) => {
      const at = cells.indexOf(event.target);
      if (at < 0) return false;
      row = Math.floor(at / columns);
      column = at % columns;
      return true;
    };
    svg.addEventListener("pointermove", (event) => { if (pick(event)) tell(); });
    svg.addEventListener("click", (event) => { if (pick(event)) { tell(); open(); } });
    grid.addEventListener("keydown", (event) => {
      const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0], Home: [0, -columns], End: [0, columns] };
      const move = moves[event.key];
      if (!move && event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      if (move) {
        row = Math.max(0, Math.min(rows - 1, row + move[0]));
        column = Math.max(0, Math.min(columns - 1, column + move[1]));
      }
      tell();
      if (!move) open();
    });
    slider.addEventListener("input", () => { frame = Number(slider.value); draw(); tell(); });
    if (sorted) sorted.addEventListener("change", () => { draw(); tell(); });
    draw();
  }

  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
    heads.forEach((head, at) => {
      const button = head.querySelector("button");
      if (!button) return;
      button.addEventListener("click", () => {
        const up = head.getAttribute("aria-sort") !== "ascending";
        const numeric = head.classList.contains("n");
        const key = (row) => numeric ? row.cells[at].dataset.v : row.cells[at].textContent;
        const rows = [...body.rows].sort((a, b) => {
          const x = key(a), y = key(b);
          if (x === "" || y === "") return (x === "") - (y === "");
          const order = numeric ? Number(x) - Number(y) : x.localeCompare(y, "en", { numeric: true });
          return up ? order : -order;
        });
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        body.append(...rows);
      });
    });
  }

  for (const button of document.querySelectorAll("button.copy")) {
    const code = button.parentElement.querySelector("code");
    button.setAttribute("aria-label", `copy ${code.textContent}`);
    button.addEventListener("click", () => {
      const done = () => { button.textContent = "copied"; };
      const select = () => { getSelection().selectAllChildren(code); button.textContent = "selected"; };
      if (navigator.clipboard) navigator.clipboard.writeText(code.textContent).then(done, select);
      else select();
    });
  }
  let shut = [];
  addEventListener("beforeprint", () => { shut = [...document.querySelectorAll("details:not([open])")]; shut.forEach((d) => { d.open = true; }); });
  addEventListener("afterprint", () => shut.forEach((d) => { d.open = false; }));
})();
