// The result: a canvas that is mixed here, so that opacity and the lit class answer at once. `value` is what app_view.view returns.
const find = (selector) => element.querySelector(selector);
const canvas = find("canvas"), context = canvas.getContext("2d");
const slider = find("input"), tip = find(".uz-tip"), rows = find("tbody");
let picture = null, ids = null, colors = [], names = [], lit = null, turn = 0;

window.upernetZooSave = (file) => {
  const link = document.createElement("a");
  link.href = file.url;
  link.download = file.orig_name;
  document.body.append(link);
  link.click();
  link.remove();
};

async function pixels(url) {
  const image = new Image();
  image.src = url;
  await image.decode();
  const sheet = new OffscreenCanvas(image.naturalWidth, image.naturalHeight).getContext("2d", { willReadFrequently: true });
  sheet.drawImage(image, 0, 0);
  return sheet.getImageData(0, 0, image.naturalWidth, image.naturalHeight);
}

function mix() {
  const from = picture.data, mixed = context.createImageData(picture.width, picture.height), to = mixed.data;
  const opacity = slider.value / 100;
  for (let p = 0, i = 0; p < ids.length; p++, i += 4) {
    if (lit === null || ids[p] === lit) {
      const color = colors[ids[p]];
      for (let k = 0; k < 3; k++) to[i + k] = from[i + k] * (1 - opacity) + color[k] * opacity;
    } else {
      const gray = (0.299 * from[i] + 0.587 * from[i + 1] + 0.114 * from[i + 2]) * 0.35;
      to[i] = to[i + 1] = to[i + 2] = gray;
    }
    to[i + 3] = 255;
  }
  context.putImageData(mixed, 0, 0);
}

function light(id) {
  lit = id === lit ? null : id;
  for (const row of rows.children) {
    const one = Number(row.dataset.id);
    row.classList.toggle("uz-lit", one === lit);
    row.classList.toggle("uz-dim", lit !== null && one !== lit);
    row.querySelector("button").setAttribute("aria-pressed", String(one === lit));
  }
  mix();
}

function cell(row, className, text) {
  const one = row.insertCell();
  one.className = className;
  one.textContent = text;
  return one;
}

function list(classes) {
  rows.replaceChildren();
  const largest = Math.max(...classes.map((one) => one.area));
  for (const { id, name, color, area, pixels } of classes) {
    const row = rows.insertRow();
    row.dataset.id = id;
    const button = document.createElement("button");
    button.type = "button";
    button.setAttribute("aria-pressed", "false");
    const swatch = document.createElement("i");
    swatch.style.background = `rgb(${color.join(",")})`;
    button.append(swatch, name);
    cell(row, "uz-name", "").append(button);
    const share = cell(row, "uz-area", "");
    const bar = document.createElement("i");
    bar.style.width = `${Math.max(1, (100 * area) / largest)}%`;
    bar.style.background = `rgb(${color.join(",")})`;
    const number = document.createElement("b");
    number.textContent = area < 0.0005 ? "< 0.1 %" : `${(100 * area).toFixed(1)} %`;
    const track = document.createElement("span");
    track.append(bar);
    share.append(track, number);
    cell(row, "uz-pixels", pixels.toLocaleString("en-US"));
    row.addEventListener("click", () => light(id));
  }
}

async function show() {
  const value = props.value, mine = ++turn;
  if (!value) {
    find(".uz-result").hidden = true;
    find(".uz-empty").hidden = false;
    return;
  }
  const [first, second] = await Promise.all([pixels(value.picture), pixels(value.labels)]);
  if (mine !== turn) return; // another result has come meanwhile
  picture = first;
  ids = new Uint16Array(picture.width * picture.height);
  for (let p = 0; p < ids.length; p++) ids[p] = second.data[4 * p] + 256 * second.data[4 * p + 1];
  colors = [], names = [], lit = null;
  for (const one of value.classes) (colors[one.id] = one.color), (names[one.id] = one.name);
  canvas.width = picture.width;
  canvas.height = picture.height;
  list(value.classes);
  find(".uz-caption").textContent = value.caption;
  find(".uz-empty").hidden = true;
  find(".uz-result").hidden = false;
  mix();
  const { top, bottom } = canvas.getBoundingClientRect();
  if (top < 0 || bottom > window.innerHeight) find(".uz-stage").scrollIntoView({ behavior: "smooth", block: "nearest" });
}

function under(event) {
  const box = canvas.getBoundingClientRect();
  const x = Math.floor(((event.clientX - box.left) / box.width) * canvas.width);
  const y = Math.floor(((event.clientY - box.top) / box.height) * canvas.height);
  return ids[Math.min(y, canvas.height - 1) * canvas.width + Math.min(x, canvas.width - 1)];
}

canvas.addEventListener("click", (event) => light(under(event)));
canvas.addEventListener("mousemove", (event) => {
  const box = find(".uz-stage").getBoundingClientRect();
  tip.textContent = names[under(event)];
  tip.hidden = false;
  tip.style.left = `${event.clientX - box.left}px`;
  tip.style.top = `${event.clientY - box.top}px`;
});
canvas.addEventListener("mouseleave", () => (tip.hidden = true));
slider.addEventListener("input", () => {
  find("output").textContent = `${slider.value} %`;
  mix();
});
find("[data-save=labels]").addEventListener("click", () => trigger("save_labels", { alpha: slider.value / 100 }));
find("[data-save=overlay]").addEventListener("click", () => trigger("save_overlay", { alpha: slider.value / 100 }));
// what is typed into the list of models filters it: in place of the name that is there, not behind it
document.addEventListener("click", (event) => event.target.closest("#uz-model input")?.select());
watch("value", show);
show();
