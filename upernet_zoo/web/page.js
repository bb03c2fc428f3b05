"use strict";
// Plot, filters, sorting, copying. All data are in the table's rows; nothing is fetched, and every text is set as text.
(() => {
  const byId = (id) => document.getElementById(id);
  const root = document.documentElement;
  const form = byId("filters"), table = document.querySelector("table"), panels = byId("panels"), tip = byId("tip");
  const number = (text) => (text === "" ? null : Number(text));
  const models = [...table.tBodies].map((body) => {
    const data = body.dataset;
    const numbers = Object.fromEntries(["miou", "ms", "gmacs", "params", "seconds", "crop"].map((key) => [key, number(data[key])]));
    return { ...data, ...numbers, body, licenses: data.licenses.split("\n"), text: `${data.name} ${data.words}`.toLowerCase() };
  });
  const datasets = [...new Set(models.map((model) => model.dataset))];
  const titles = { gmacs: "GMACs", params: "million parameters", seconds: "CPU seconds, fused", miou: "mIoU (%)", ms: "mIoU (%), multi-scale and flip" };
  let shown = models;

  // light and dark: the system's choice until the button is used; a file: page may be refused storage
  const system = matchMedia("(prefers-color-scheme: dark)");
  let theme = null;
  try { theme = localStorage.getItem("upernet-zoo-theme"); } catch { /* none is remembered */ }
  if (theme) root.dataset.theme = theme;
  byId("theme").addEventListener("click", () => {
    theme = (theme || (system.matches ? "dark" : "light")) === "dark" ? "light" : "dark";
    root.dataset.theme = theme;
    try { localStorage.setItem("upernet-zoo-theme", theme); } catch { /* for this visit alone */ }
  });

  // copying
  const copyText = async (text) => {
    try { await navigator.clipboard.writeText(text); return true; } catch { /* no permission: the older way */ }
    const area = document.createElement("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  };
  document.addEventListener("click", async (event) => {
    const button = event.target.closest(".copy");
    if (!button) return;
    const source = button.dataset.copy ? document.querySelector(button.dataset.copy)
      : (button.closest(".snippet") || button.closest("tbody")).querySelector("pre code");
    const done = await copyText(source.textContent);
    button.textContent = done ? "Copied" : "Select it";
    button.classList.toggle("done", done);
    button.focus();
    setTimeout(() => { button.textContent = "Copy"; button.classList.remove("done"); }, 1600);
  });

  // rows
  const toggle = (model, open) => {
    const button = model.body.querySelector(".open");
    button.setAttribute("aria-expanded", String(open));
    model.body.querySelector(".more").hidden = !open;
  };
  const pointOf = (model) => panels.querySelector(`[data-name="${CSS.escape(model.name)}"]`);
  for (const model of models) {
    model.body.querySelector(".open").addEventListener("click", (event) => {
      toggle(model, event.currentTarget.getAttribute("aria-expanded") !== "true");
    });
    model.body.addEventListener("mouseenter", () => pointOf(model)?.classList.add("on"));
    model.body.addEventListener("mouseleave", () => pointOf(model)?.classList.remove("on"));
  }
  const openRow = (model) => {
    toggle(model, true);
    model.body.classList.add("on");
    setTimeout(() => model.body.classList.remove("on"), 2200);
    model.body.querySelector(".open").focus({ preventScroll: true });
    model.body.scrollIntoView({ block: "start" });
  };

  // sorting: models without the number come last, whichever way; no key is the order of the file, by data set and then by mIoU
  const heads = [...table.querySelectorAll("th[data-key]")];
  const sortBy = (key, descending) => {
    const compare = (a, b) => {
      const [x, y] = [a[key], b[key]];
      if (x === null || y === null) return (x === null) - (y === null);
      const order = typeof x === "number" ? x - y : x.localeCompare(y, "en", { numeric: true });
      return descending ? -order : order;
    };
    table.append(...(key ? [...models].sort(compare) : models).map((model) => model.body));
    for (const head of heads) {
      if (head.dataset.key === key) head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    }
    const value = `${key} ${descending ? "descending" : "ascending"}`, order = byId("order");
    order.value = [...order.options].some((option) => option.value === value) ? value : "";
  };
  for (const head of heads) {
    head.querySelector("button").addEventListener("click", () => {
      const now = head.getAttribute("aria-sort");
      sortBy(head.dataset.key, now ? now === "ascending" : head.dataset.first === "descending");
    });
  }
  byId("order").addEventListener("change", (event) => {
    const [key, way] = event.target.value.split(" ");
    sortBy(key, way === "descending");
  });

  // filters
  const checked = (name) => new Set([...form.querySelectorAll(`input[name="${name}"]:checked`)].map((input) => input.value));
  const filter = () => {
    const words = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    const license = byId("license").value, wanted = checked("dataset"), kinds = checked("kind");
    shown = models.filter((model) =>
      words.every((word) => model.text.includes(word)) && (!wanted.size || wanted.has(model.dataset)) &&
      (!kinds.size || kinds.has(model.kind)) && (!license || model.licenses.includes(license)));
    const visible = new Set(shown);
    for (const model of models) model.body.hidden = !visible.has(model);
    byId("nothing").hidden = shown.length > 0;
    byId("count").textContent = shown.length === models.length ? `${models.length} models` : `${shown.length} of ${models.length} models`;
    draw();
  };
  form.addEventListener("input", filter);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(() => { sortBy("", false); filter(); }));

  // plot
  const svg = (name, attributes = {}, text = "") => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.textContent = text;
    return element;
  };
  const marks = [
    "M-6,0a6,6 0 1,0 12,0a6,6 0 1,0 -12,0", "M-5.4,-5.4h10.8v10.8h-10.8z", "M0,-7.4L7.4,0L0,7.4L-7.4,0z", "M0,-7L6.6,5L-6.6,5z",
  ];
  const written = (value) => String(Number(value.toPrecision(3)));
  const logTicks = (low, high) => {
    const steps = high / low > 12 ? [1, 2, 5] : [1, 1.5, 2, 3, 4, 5, 6, 8], found = [];
    for (let decade = Math.floor(Math.log10(low)); decade <= Math.log10(high); decade += 1)
      for (const step of steps) { const tick = step * 10 ** decade; if (tick >= low && tick <= high) found.push(tick); }
    return found;
  };
  const linearTicks = (low, high) => {
    const rough = (high - low) / 5, size = 10 ** Math.floor(Math.log10(rough));
    const step = size * [1, 2, 5, 10].find((factor) => factor * size >= rough), found = [];
    for (let tick = Math.ceil(low / step) * step; tick <= high; tick += step) found.push(tick);
    return found;
  };
  const frontierOf = (points) => {
    const found = [];
    for (const point of [...points].sort((a, b) => a.x - b.x || b.y - a.y)) if (!found.length || point.y > found.at(-1).y) found.push(point);
    return found;
  };
  const describe = (model) => {
    const parts = [`${model.dataset}, ${model.backbone}`];
    if (model.miou !== null) parts.push(`${model.miou.toFixed(2)} mIoU` + (model.ms === null ? "" : `, ${model.ms.toFixed(2)} with scales and flip`));
    if (model.gmacs !== null) parts.push(`${model.gmacs} GMACs at ${model.at}`);
    if (model.params !== null) parts.push(`${written(model.params)} M parameters`);
    if (model.seconds !== null) parts.push(`${written(model.seconds)} s, fused, on the CPU`);
    return parts;
  };
  const showTip = (model, point) => {
    const name = document.createElement("b");
    name.textContent = model.name;
    tip.replaceChildren(name, ...describe(model).flatMap((part, index) => (index ? [document.createElement("br"), part] : [part])));
    tip.hidden = false;
    const at = point.getBoundingClientRect(), box = tip.getBoundingClientRect();
    const left = Math.min(Math.max(8, at.left + at.width / 2 - box.width / 2), root.clientWidth - box.width - 8);
    const above = at.top - box.height - 10;
    tip.style.left = `${left + scrollX}px`;
    tip.style.top = `${(above > 4 ? above : at.bottom + 10) + scrollY}px`;
  };
  const hideTip = () => { tip.hidden = true; };
  addEventListener("keydown", (event) => { if (event.key === "Escape") hideTip(); });

  const fill = (box, dataset, group, height) => {
    const keyX = byId("x-axis").value, keyY = byId("y-axis").value;
    const points = group.filter((model) => model[keyX] !== null && model[keyY] !== null).map((model) => ({ model, x: model[keyX], y: model[keyY] }));
    const title = document.createElement("h3");
    title.textContent = `${dataset} · ` + (points.length ? `${points.length} ${points.length === 1 ? "model" : "models"}` : "none with both numbers");
    box.append(title);
    if (!points.length) return;
    const width = box.clientWidth, edge = { left: 40, right: 16, top: 24, bottom: 40 };
    const xs = points.map((point) => point.x), ys = points.map((point) => point.y);
    const pad = Math.max((Math.max(...ys) - Math.min(...ys)) * 0.12, 0.6);
    const [x0, x1, y0, y1] = [Math.min(...xs) / 1.1, Math.max(...xs) * 1.1, Math.min(...ys) - pad, Math.max(...ys) + pad];
    const toX = (x) => edge.left + (Math.log(x / x0) / Math.log(x1 / x0)) * (width - edge.left - edge.right);
    const toY = (y) => height - edge.bottom - ((y - y0) / (y1 - y0)) * (height - edge.top - edge.bottom);
    const chart = svg("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "group", "aria-label": `${dataset}: ${titles[keyY]} against ${titles[keyX]}` });
    for (const tick of linearTicks(y0, y1)) {
      chart.append(svg("line", { class: "grid", x1: edge.left, x2: width - edge.right, y1: toY(tick), y2: toY(tick) }));
      chart.append(svg("text", { x: edge.left - 8, y: toY(tick) + 4, "text-anchor": "end" }, written(tick)));
    }
    const ticks = logTicks(x0, x1);
    for (const tick of ticks.length < 3 ? linearTicks(x0, x1) : ticks) {
      chart.append(svg("line", { class: "grid", x1: toX(tick), x2: toX(tick), y1: height - edge.bottom, y2: height - edge.bottom + 5 }));
      chart.append(svg("text", { x: toX(tick), y: height - edge.bottom + 18, "text-anchor": "middle" }, written(tick)));
    }
    chart.append(svg("text", { x: width - edge.right, y: height - 4, "text-anchor": "end" }, `${titles[keyX]} (log scale) →`));
    chart.append(svg("text", { x: 0, y: 11 }, `↑ ${titles[keyY]}`));
    const frontier = frontierOf(points);
    chart.append(svg("path", { class: "frontier", d: `M${frontier.map((point) => `${toX(point.x)},${toY(point.y)}`).join("L")}` }));
    const drawn = [...points].sort((a, b) => a.x - b.x || a.y - b.y).map((point, index) => {
      const { model } = point;
      const group = svg("g", { class: `point k${model.color}`, transform: `translate(${toX(point.x)},${toY(point.y)})`, tabindex: index ? -1 : 0, role: "button" });
      group.setAttribute("aria-label", `${model.name}: ${describe(model).join("; ")}`);
      group.dataset.name = model.name;
      group.append(svg("path", { d: marks[Number(model.shape) % marks.length] }));
      group.addEventListener("mouseenter", () => showTip(model, group));
      group.addEventListener("mouseleave", hideTip);
      group.addEventListener("focus", () => showTip(model, group));
      group.addEventListener("blur", hideTip);
      group.addEventListener("click", () => { hideTip(); openRow(model); });
      return group;
    });
    chart.append(...drawn);
    chart.addEventListener("keydown", (event) => {
      const here = drawn.indexOf(document.activeElement);
      const step = { ArrowRight: here + 1, ArrowUp: here + 1, ArrowLeft: here - 1, ArrowDown: here - 1, Home: 0, End: drawn.length - 1 }[event.key];
      if (here < 0) return;
      if (event.key === "Enter" || event.key === " ") { event.preventDefault(); drawn[here].dispatchEvent(new MouseEvent("click")); }
      if (step === undefined) return;
      event.preventDefault();
      const next = drawn[Math.min(Math.max(step, 0), drawn.length - 1)];
      drawn[here].setAttribute("tabindex", -1);
      next.setAttribute("tabindex", 0);
      next.focus();
    });
    let end = -Infinity; // of the last name, so that none lies over another; a letter is about 6.6 pixels wide
    for (const point of frontier) {
      const x = toX(point.x), y = toY(point.y), half = point.model.backbone.length * 3.3;
      const middle = Math.min(x, width - half);
      if (middle - half < end + 6) continue;
      end = middle + half;
      chart.append(svg("text", { class: "label", x: middle, y: y - 11, "text-anchor": "middle" }, point.model.backbone));
    }
    box.append(chart);
  };
  const draw = () => {
    hideTip();
    panels.replaceChildren();
    const groups = datasets.map((dataset) => [dataset, shown.filter((model) => model.dataset === dataset)]).filter(([, group]) => group.length);
    groups.sort((a, b) => b[1].length - a[1].length);
    const small = groups.length > 2 && root.clientWidth > 1000;
    const boxes = groups.map(() => document.createElement("div"));
    for (const box of boxes) box.className = "panel";
    panels.append(...boxes); // all of them before any is measured
    groups.forEach(([dataset, group], index) => fill(boxes[index], dataset, group, root.clientWidth <= 560 ? 280 : index && small ? 222 : 486));
  };
  for (const axis of ["x-axis", "y-axis"]) byId(axis).addEventListener("change", draw);
  let width = root.clientWidth;
  addEventListener("resize", () => { if (root.clientWidth !== width) { width = root.clientWidth; draw(); } });
  for (const element of [form, panels.closest("section"), byId("theme")]) element.hidden = false;
  filter();
})();
