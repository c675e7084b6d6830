// The rows of a mix. `props.value` is the list of rows; it is replaced at every edit, and "edited" tells Python.
const list = element.querySelector(".da-rows");
let waiting = null;

const rows = () => (Array.isArray(props.value) ? props.value : []);
const say = (delay) => {
  clearTimeout(waiting);
  waiting = setTimeout(() => trigger("edited", {}), delay);
};
const edit = (name, change, delay = 0) => {
  props.value = rows().map((row) => (row.name === name ? { ...row, ...change } : row));
  say(delay);
};
const move = (name, to) => {
  const found = rows().slice();
  const from = found.findIndex((row) => row.name === name);
  if (from < 0 || to < 0 || to >= found.length) return;
  found.splice(to, 0, ...found.splice(from, 1));
  props.value = found;
  draw();
  say(0);
};

// A slider and a number that show the same.
const dial = (label, value, low, high, step, put) => {
  const slide = make("input", { type: "range", min: low, max: high, step, "aria-label": label });
  const number = make("input", { type: "number", step, "aria-label": `${label}, as a number` });
  slide.value = value;
  number.value = shown(value);
  slide.addEventListener("input", () => { number.value = shown(+slide.value); put(+slide.value); });
  number.addEventListener("change", () => {
    if (number.value === "" || !Number.isFinite(+number.value)) { number.value = shown(+slide.value); return; }
    slide.value = number.value;
    put(+number.value);
  });
  return make("div", { class: "da-dial" }, slide, number);
};

const field = (text, ...inside) => make("label", { class: "da-field" }, make("span", {}, text), ...inside);

const parts = (row) => {
  const own = make("input", { type: "checkbox", "aria-label": `A weight of its own for the text encoders of ${row.name}` });
  own.checked = row.te != null;
  const place = make("div", {});
  const show = (te) => place.replaceChildren(...(te == null ? [] : [
    dial(`Text encoder weight of ${row.name}`, te, -2, 2, 0.05, (value) => edit(row.name, { te: value }, 150)),
  ]));
  own.addEventListener("change", () => {
    const now = rows().find((one) => one.name === row.name);
    const te = own.checked ? now.weight : null;
    show(te);
    edit(row.name, { te });
  });
  show(row.te);
  return make("fieldset", {}, make("legend", {}, "Parts of the pipeline"),
    make("label", { class: "da-check" }, own, " text encoders have a weight of their own"), place);
};

const titled = (name) => (name === "BASE" ? "encoders" : name.replace("single_transformer_blocks.", "single ").replace("transformer_blocks.", "block "));

const blocks = (row) => {
  const names = props.names || [];
  const presets = props.presets || {};
  if (!names.length) return null;
  const numbers = (text) => {
    const name = text.split(":")[0].toUpperCase();
    if (presets[name]) return presets[name].map((value) => value * (+(text.split(":")[1] || 1)));
    const found = text.split(",").map(Number);
    return text && found.length === names.length && found.every(Number.isFinite) ? found : names.map(() => 1);
  };
  const choice = make("select", { "aria-label": `Block preset of ${row.name}` },
    make("option", { value: "" }, "all blocks alike"),
    ...Object.keys(presets).map((name) => make("option", { value: name }, name)),
    make("option", { value: "own" }, "by hand"));
  const grid = make("div", { class: "da-blocks" });
  const draw = (text) => {
    choice.value = text === "" ? "" : presets[text.toUpperCase()] ? text.toUpperCase() : "own";
    const values = numbers(text);
    grid.replaceChildren(...names.map((name, i) => {
      const input = make("input", { type: "number", step: 0.1, "aria-label": `Block ${name} of ${row.name}` });
      input.value = shown(values[i]);
      input.addEventListener("change", () => {
        values[i] = Number.isFinite(+input.value) ? +input.value : 1;
        choice.value = "own";
        edit(row.name, { blocks: values.map(shown).join(",") });
      });
      return field(titled(name), input);
    }));
  };
  choice.addEventListener("change", () => {
    const text = choice.value === "own" ? numbers(rows().find((one) => one.name === row.name).blocks).map(shown).join(",") : choice.value;
    draw(text);
    edit(row.name, { blocks: text });
  });
  draw(row.blocks || "");
  return make("fieldset", {}, make("legend", {}, "Blocks"), choice, grid);
};

const steps = (row) => {
  const input = (label, value, key) => {
    const node = make("input", { type: "number", min: 0, max: 100, step: 5, "aria-label": `${label} of ${row.name}, percent` });
    node.value = Math.round(value * 100);
    node.addEventListener("change", () => {
      const now = rows().find((one) => one.name === row.name);
      const next = { start: now.start, stop: now.stop, [key]: Math.min(100, Math.max(0, +node.value || 0)) / 100 };
      if (next.start < next.stop) edit(row.name, next);
      else node.value = Math.round(now[key] * 100);
    });
    return node;
  };
  return make("fieldset", {}, make("legend", {}, "Steps, in percent of the run"),
    field("from", input("First step", row.start, "start")), field("to", input("Last step", row.stop, "stop")));
};

const words = (row) => {
  if (!(row.words || []).length) return null;
  return make("div", { class: "da-words", role: "group", "aria-label": `Trigger words of ${row.name}` }, ...row.words.map((word) => {
    const box = make("input", { type: "checkbox" });
    box.checked = row.triggers.includes(word);
    box.addEventListener("change", () => {
      const now = rows().find((one) => one.name === row.name).triggers.filter((one) => one !== word);
      edit(row.name, { triggers: box.checked ? [...now, word] : now });
    });
    return make("label", { class: "da-word" }, box, ` ${word}`);
  }));
};

const tool = (label, text, act) => {
  const button = make("button", { type: "button", "aria-label": label, title: label }, text);
  button.addEventListener("click", act);
  return button;
};

const drawn = (row, index, open) => {
  const on = make("input", { type: "checkbox", "aria-label": `Use ${row.name}` });
  on.checked = !!row.on;
  const fit = row.fit || { level: "grey", text: "not looked at yet", reasons: [] };
  const badge = make("button", { type: "button", class: `da-badge da-${fit.level}`, title: "Why is it weak or strong?",
    "aria-label": `${row.name}: applied ${fit.text}. Why is it weak or strong?` }, fit.text);
  badge.addEventListener("click", () => trigger("why", { name: row.name }));
  const grip = make("span", { class: "da-grip", draggable: "true", title: "Drag to reorder", "aria-hidden": "true" }, "⠿");
  const item = make("li", { class: "da-row", "data-name": row.name },
    make("div", { class: "da-head" }, grip, make("label", { class: "da-name" }, on, make("b", {}, row.name)),
      make("small", {}, row.about || ""), badge,
      make("span", { class: "da-tools" },
        tool(`Move ${row.name} up`, "↑", () => move(row.name, index - 1)),
        tool(`Move ${row.name} down`, "↓", () => move(row.name, index + 1)),
        tool(`Remove ${row.name}`, "✕", () => { props.value = rows().filter((one) => one.name !== row.name); draw(); say(0); }))),
    dial(`Weight of ${row.name}`, row.weight, -2, 2, 0.05, (value) => edit(row.name, { weight: value }, 150)),
    words(row),
    row.held ? make("p", { class: "da-said" }, "Keeps the strengths by block or step that its recipe has; block weights or steps here replace them.") : null);
  const more = make("details", {}, make("summary", {}, "Blocks, parts, steps"));
  more.open = open;
  // Made when it is opened: sixty numbers a row are not there for nothing.
  const fill = () => { if (more.open && more.children.length === 1) more.append(...[blocks(row), parts(row), steps(row)].filter(Boolean)); };
  more.addEventListener("toggle", fill);
  fill();
  item.append(more);
  on.addEventListener("change", () => { item.classList.toggle("da-off", !on.checked); edit(row.name, { on: on.checked }); });
  item.classList.toggle("da-off", !row.on);
  grip.addEventListener("dragstart", (event) => { event.dataTransfer.setData("text/plain", row.name); event.dataTransfer.effectAllowed = "move"; });
  item.addEventListener("dragover", (event) => event.preventDefault());
  item.addEventListener("drop", (event) => { event.preventDefault(); move(event.dataTransfer.getData("text/plain"), index); });
  return item;
};

const draw = () => {
  const open = new Set([...list.querySelectorAll("details[open]")].map((node) => node.closest("li").dataset.name));
  const held = document.activeElement && list.contains(document.activeElement) ? document.activeElement.getAttribute("aria-label") : null;
  list.replaceChildren(...rows().map((row, index) => drawn(row, index, open.has(row.name))));
  if (!rows().length) list.append(make("li", { class: "da-empty" }, "No adapter yet: add one from the library, or write <lora:name:0.8> into the prompt."));
  if (held) [...list.querySelectorAll("[aria-label]")].find((node) => node.getAttribute("aria-label") === held)?.focus();
};

watch("value", draw);
draw();
