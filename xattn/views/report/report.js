"use strict";
(() => {
  const page = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const el = (tag, text, attributes = {}) => {
    const node = document.createElement(tag);
    if (text !== undefined) node.textContent = text; // prompts are untrusted: text, never markup
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    return node;
  };
  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));

  // -- the data: maps of a subject (an image and its prompt), one block of bytes for each word

  const tables = Object.fromEntries(Object.entries(page.colors).map(([k, v]) => [k, bytes(v)]));
  for (const subject of page.subjects) {
    const { total, layers, steps, fine, heads } = subject.grids;
    const grids = [total, ...layers, ...steps, ...fine, ...heads.flat()];
    let at = 0;
    subject.entries = grids.map(([h, w]) => ({ h, w, at: (at += h * w) - h * w }));
    subject.first = {
      layers: 1,
      steps: 1 + layers.length,
      fine: 1 + layers.length + steps.length,
      heads: [],
    };
    let next = subject.first.fine + fine.length;
    for (const layer of heads) { subject.first.heads.push(next); next += layer.length; }
    subject.blocks = [];
  }
  const block = (subject, word) => (subject.blocks[word] ??= bytes(subject.data[word]));

  // -- what is chosen

  const state = { subject: 0, word: 0, peek: null, step: 0, layer: 0, head: 0, heads: false, place: null };
  const subject = () => page.subjects[state.subject];
  const word = () => state.peek ?? state.word;

  function entryIndex() {
    const s = subject(), { step, layer } = state;
    if (state.heads && layer > 0 && s.grids.heads.length) return s.first.heads[layer - 1] + state.head;
    if (step && layer) return s.first.fine + (step - 1) * s.layers.length + layer - 1;
    if (step) return s.first.steps + step - 1;
    if (layer) return s.first.layers + layer - 1;
    return 0;
  }

  function scaleOf(index) {
    const s = subject(), scales = s.scales[word()];
    const one = $("shared").checked && state.step && !(state.heads && state.layer);
    if (!one) return scales[index];
    let top = 0;
    for (let n = 0; n < s.steps.length; n++) {
      const i = state.layer ? s.first.fine + n * s.layers.length + state.layer - 1 : s.first.steps + n;
      top = Math.max(top, scales[i]);
    }
    return top;
  }

  // -- drawing

  const view = $("view"), ink = view.getContext("2d");
  const sheet = document.createElement("canvas"), sheetInk = sheet.getContext("2d");
  const pictures = page.subjects.map((s) => {
    if (s.picture === null) return null;
    const image = new Image();
    image.addEventListener("load", draw);
    image.src = page.pictures[s.picture];
    return image;
  });

  // Catmull-Rom along one axis: (rows, from) to (rows, to), transposed on the way.
  function stretch(values, rows, from, to) {
    const out = new Float32Array(to * rows);
    for (let x = 0; x < to; x++) {
      const p = ((x + 0.5) * from) / to - 0.5, i = Math.floor(p), t = p - i;
      const weights = [
        ((-0.5 * t + 1) * t - 0.5) * t, (1.5 * t - 2.5) * t * t + 1,
        ((-1.5 * t + 2) * t + 0.5) * t, (0.5 * t - 0.5) * t * t,
      ];
      const taps = [-1, 0, 1, 2].map((d) => Math.min(from - 1, Math.max(0, i + d)));
      for (let y = 0; y < rows; y++) {
        let sum = 0;
        for (let k = 0; k < 4; k++) sum += weights[k] * values[y * from + taps[k]];
        out[x * rows + y] = sum;
      }
    }
    return out;
  }

  let asked = false;
  function draw() {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => { asked = false; paint(); });
  }

  function paint() {
    const s = subject(), [width, height] = s.size;
    if (view.width !== width || view.height !== height) {
      view.width = width;
      view.height = height;
      view.parentElement.style.maxWidth = `max(16rem, calc(78vh * ${width / height}))`;
    }
    const picture = pictures[state.subject];
    ink.globalAlpha = 1;
    ink.fillStyle = "#808080";
    ink.fillRect(0, 0, width, height);
    if (picture && picture.complete && picture.naturalWidth) ink.drawImage(picture, 0, 0, width, height);
    let top = 0;
    if (s.words.length) {
      const index = entryIndex(), { h, w, at } = s.entries[index];
      const map = block(s, word()).subarray(at, at + h * w), own = s.scales[word()][index];
      top = scaleOf(index);
      const side = 320 / Math.max(width, height);
      const W = Math.max(w, Math.round(width * side)), H = Math.max(h, Math.round(height * side));
      const values = stretch(stretch(map, h, w, W), W, h, H); // (H, W)
      const colors = tables[$("colors").value], pixels = new ImageData(W, H);
      const gain = top > 0 ? own / top : 0, least = ($("threshold").value / 100) * 255;
      for (let i = 0, o = 0; i < values.length; i++, o += 4) {
        const v = Math.min(255, Math.max(0, values[i] * gain)), c = Math.round(v) * 3;
        pixels.data[o] = colors[c];
        pixels.data[o + 1] = colors[c + 1];
        pixels.data[o + 2] = colors[c + 2];
        pixels.data[o + 3] = v < least ? 0 : 255;
      }
      sheet.width = W;
      sheet.height = H;
      sheetInk.putImageData(pixels, 0, 0);
      ink.globalAlpha = $("opacity").value / 100;
      ink.imageSmoothingEnabled = true;
      ink.imageSmoothingQuality = "high";
      ink.drawImage(sheet, 0, 0, width, height);
    }
    if (state.place) marker(width, height);
    $("top").textContent = top ? Number(top.toPrecision(3)).toString() : "0";
    describe();
  }

  function marker(width, height) {
    const [h, w] = subject().latent, [row, column] = state.place;
    ink.globalAlpha = 1;
    for (const [color, line] of [["#000", 5], ["#fff", 2]]) {
      ink.strokeStyle = color;
      ink.lineWidth = (line * width) / 512;
      ink.beginPath();
      ink.arc(((column + 0.5) / w) * width, ((row + 0.5) / h) * height, width / 64, 0, 7);
      ink.stroke();
    }
  }

  function describe() {
    const s = subject();
    const single = state.heads && state.layer > 0;
    const step = single || !state.step ? s.whole : stepText(s, state.step);
    const layer = state.layer ? s.layers[state.layer - 1] : s.mean;
    const parts = [s.words.length ? `\u201c${s.words[word()]}\u201d` : "no word", step, layer];
    if (single) parts.push(`head ${state.head}`);
    $("shown").textContent = parts.join(", ");
    view.setAttribute("aria-label", `The image with the map of ${parts.join(", ")}`);
  }

  const stepText = (s, n) => {
    const { name, timestep } = s.steps[n - 1];
    return `${name} (t ${Number(timestep.toFixed(1))})`;
  };

  // -- the controls

  function range(id, most, value, text) {
    const input = $(id);
    input.max = most;
    input.value = value;
    $(`${id}-text`).textContent = text;
    input.setAttribute("aria-valuetext", text);
  }

  function controls() {
    const s = subject(), heads = s.grids.heads;
    const single = state.heads && state.layer > 0;
    $("step-field").hidden = !s.steps.length;
    $("shared-field").hidden = !s.steps.length;
    $("step-name").textContent = s.axis === "level" ? "Level" : "Step";
    $("shared-name").textContent = `One scale for all ${s.axis}s`;
    $("play").setAttribute("aria-label", `Play the ${s.axis}s`);
    $("layer-field").hidden = s.layers.length < 2;
    $("head-field").hidden = !heads.length;
    range("step", s.steps.length, state.step, state.step ? stepText(s, state.step) : "all");
    range("layer", s.layers.length, state.layer, state.layer ? s.layers[state.layer - 1] : "all");
    $("step").disabled = $("play").disabled = single;
    $("head").disabled = !single;
    const count = state.layer && heads.length ? heads[state.layer - 1].length : 1;
    state.head = Math.min(state.head, count - 1);
    range("head", Math.max(0, count - 1), state.head, single ? String(state.head) : "mean");
    $("head-hint").textContent = !state.heads ? ""
      : single ? `Single heads are shown over all ${s.axis}s.` : "Choose a layer to see its heads.";
    for (const id of ["opacity", "threshold"]) range(id, 100, $(id).value, `${$(id).value} %`);
    bar();
    draw();
  }

  function bar() {
    const colors = tables[$("colors").value], pixels = new ImageData(256, 1);
    for (let i = 0; i < 256; i++) {
      pixels.data.set([colors[3 * i], colors[3 * i + 1], colors[3 * i + 2], 255], 4 * i);
    }
    $("bar").getContext("2d").putImageData(pixels, 0, 0);
  }

  function words() {
    const s = subject(), box = $("prompt");
    box.replaceChildren();
    for (const { text, word: n } of s.parts) {
      if (n === null) { box.append(el("span", text, { class: "unkept" })); continue; }
      const button = el("button", text, { type: "button", "data-word": n, "aria-pressed": "false" });
      button.addEventListener("pointerenter", (e) => { if (e.pointerType === "mouse") peek(n); });
      button.addEventListener("pointerleave", () => peek(null));
      button.addEventListener("click", () => { state.word = n; state.peek = null; mark(); draw(); });
      box.append(button);
    }
    mark();
    document.title = `${s.text || "Attention"} \u00b7 xattn`;
  }

  function peek(n) { state.peek = n; mark(); draw(); }

  function mark() {
    for (const button of $("prompt").querySelectorAll("button")) {
      const n = Number(button.dataset.word);
      button.setAttribute("aria-pressed", String(n === state.word));
      button.classList.toggle("peek", n === state.peek);
    }
  }

  $("prompt").addEventListener("keydown", (event) => {
    const move = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    const buttons = [...$("prompt").querySelectorAll("button")];
    const at = buttons.indexOf(document.activeElement);
    if (!move || at < 0) return;
    event.preventDefault();
    const next = buttons[(at + move + buttons.length) % buttons.length];
    next.focus();
    next.click();
  });

  for (const id of ["step", "layer", "head"]) {
    $(id).addEventListener("input", () => { state[id] = Number($(id).value); controls(); });
  }
  for (const id of ["opacity", "threshold", "colors", "shared"]) $(id).addEventListener("input", controls);
  $("heads").addEventListener("input", () => { state.heads = $("heads").checked; controls(); });
  document.querySelector("form").addEventListener("submit", (event) => event.preventDefault());

  // -- the words at a place: shares in tenths of a per cent, as Trace.at writes them

  function shares(s) {
    if (!s.tenths) {
      const raw = bytes(s.shares), data = new DataView(raw.buffer);
      s.tenths = Array.from({ length: raw.length / 2 }, (_, i) => data.getUint16(2 * i, true));
    }
    return s.tenths;
  }

  function at() {
    const s = subject(), [h, w] = s.latent, table = $("at");
    $("at-box").hidden = !s.words.length;
    $("at-hint").textContent = s.shares
      ? "Click the image, or focus it and press the arrow keys, to rank the words that act at a place."
      : "This page has no room for the words at each place; trace.at ranks them in Python.";
    table.hidden = !state.place || !s.shares;
    if (table.hidden) { state.place = null; return; }
    state.place = [Math.min(h - 1, state.place[0]), Math.min(w - 1, state.place[1])];
    const [row, column] = state.place, cells = shares(s);
    const share = (n) => cells[(n * h + row) * w + column];
    const ranked = s.words.map((text, n) => ({ text, n })).sort((a, b) => share(b.n) - share(a.n));
    ranked.push({ text: "(other tokens)", n: s.words.length });
    const place = [(column + 0.5) / w, (row + 0.5) / h].map((side) => Number(side.toFixed(4)));
    const body = el("tbody");
    body.append(...ranked.map(({ text, n }) => {
      const line = el("tr", undefined, n === s.words.length ? { class: "rest" } : {});
      line.append(el("th", text, { scope: "row" }), el("td", `${(share(n) / 10).toFixed(1)} %`));
      return line;
    }));
    table.replaceChildren(el("caption", `At (${place.join(", ")}), mean of all ${s.axis}s, ${s.mean}`), body);
  }

  function look(row, column) {
    const s = subject(), [h, w] = s.latent;
    if (!s.shares) return;
    state.place = [Math.min(h - 1, Math.max(0, row)), Math.min(w - 1, Math.max(0, column))];
    at();
    draw();
  }

  view.addEventListener("click", (event) => {
    const box = view.getBoundingClientRect(), [h, w] = subject().latent;
    const x = (event.clientX - box.left) / box.width, y = (event.clientY - box.top) / box.height;
    look(Math.floor(y * h), Math.floor(x * w));
  });
  view.addEventListener("keydown", (event) => {
    const move = {
      ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0],
    }[event.key];
    if (!move) return;
    event.preventDefault();
    const [h, w] = subject().latent, from = state.place ?? [Math.floor(h / 2), Math.floor(w / 2)];
    look(from[0] + move[0], from[1] + move[1]);
  });

  let timer = null;
  function play(on) {
    clearInterval(timer);
    timer = on ? setInterval(() => {
      state.step = (state.step % subject().steps.length) + 1;
      controls();
    }, 160) : null;
    $("play").setAttribute("aria-pressed", String(on));
    $("play-icon").setAttribute("d", on ? "M3 2h4v12H3zM9 2h4v12H9z" : "M4 2l10 6-10 6z");
  }
  $("play").addEventListener("click", () => play(timer === null));

  function choose(n) {
    const before = subject();
    Object.assign(state, { subject: n, peek: null });
    const s = subject(), same = s.words.indexOf(before.words[state.word]);
    state.word = same >= 0 ? same : s.start;
    state.step = Math.min(state.step, s.steps.length);
    state.layer = Math.min(state.layer, s.layers.length);
    if (!s.steps.length) play(false);
    $("subject").value = String(n);
    words();
    measures();
    facts();
    at();
    controls();
  }
  page.subjects.forEach((s, n) => $("subject").append(el("option", s.title, { value: n })));
  $("subject-field").hidden = page.subjects.length < 2;
  $("subject").addEventListener("input", () => choose(Number($("subject").value)));

  // -- the rest of the page

  function measures() {
    const s = subject(), head = el("tr"), top = el("thead"), body = el("tbody");
    head.append(el("th", "word", { scope: "col" }));
    head.append(...page.measures.map((name) => el("th", name, { scope: "col" })));
    top.append(head);
    body.append(...s.measures.map((values, n) => {
      const row = el("tr");
      row.append(el("th", s.words[n], { scope: "row" }));
      row.append(...values.map((value) => el("td", [value].flat().join(", "))));
      return row;
    }));
    $("measures").replaceChildren(top, body);
    $("measures-box").hidden = !s.words.length;
  }

  function facts() {
    $("facts").replaceChildren(...subject().facts.map(([name, value]) => {
      const row = el("tr");
      row.append(el("th", name, { scope: "row" }), el("td", value));
      return row;
    }));
  }

  for (const name of Object.keys(tables)) $("colors").append(el("option", name, { value: name }));
  if (page.cards.length) {
    $("edit").hidden = false;
    $("edit-title").textContent = page.heading;
    for (const { title, text, picture, mask } of page.cards) {
      const figure = el("figure"), caption = el("figcaption");
      caption.append(el("b", title), el("span", text));
      figure.append(caption);
      figure.append(el("img", undefined, { src: page.pictures[picture], alt: `${title}: ${text}` }));
      if (mask !== null) {
        figure.append(el("img", undefined, { src: page.pictures[mask], alt: `Mask of ${title}` }));
      }
      $("cards").append(figure);
    }
    $("plan").textContent = page.plan;
    $("plan-box").hidden = !page.plan;
  }
  if (page.subjects.length) {
    state.word = subject().start;
    choose(0);
  } else {
    for (const part of document.querySelectorAll("header, main, .run")) part.hidden = true;
  }
})();
