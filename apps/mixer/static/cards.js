// The library's cards. `props.value` is {cards, found, done, of}; "chosen" and "more" tell Python what was pressed.
const list = element.querySelector(".da-cards");
const told = element.querySelector(".da-told");

const size = (bytes) => (bytes >= 1e9 ? `${(bytes / 1e9).toFixed(1)} GB` : bytes >= 1e6 ? `${(bytes / 1e6).toFixed(1)} MB` : `${Math.ceil(bytes / 1e3)} kB`);

const picture = (card) => card.preview
  ? make("img", { src: card.preview, alt: "", loading: "lazy" })
  : make("span", { class: "da-blank", "aria-hidden": "true" }, card.name.slice(0, 2));

const drawn = (card) => {
  const fit = card.fit || { level: "grey", text: "not looked at yet", reasons: [] };
  const usable = fit.level !== "red";
  const add = make("button", { type: "button", class: "da-add", "aria-label": `Add ${card.name} to the mix`, disabled: !usable }, usable ? "Add" : "–");
  add.addEventListener("click", () => trigger("chosen", { id: card.id }));
  const facts = [card.family, card.algorithms, card.ranks ? `rank ${card.ranks}` : "", size(card.size)].filter(Boolean).join(" · ");
  const why = fit.reasons.length || card.warnings.length
    ? make("details", {}, make("summary", {}, usable ? "to know" : "why"), make("ul", {}, ...[...fit.reasons, ...card.warnings].slice(0, 12).map((text) => make("li", {}, text))))
    : null;
  return make("li", { class: `da-card ${usable ? "" : "da-unfit"}`, "data-id": card.id }, picture(card),
    make("div", { class: "da-about" },
      make("b", {}, card.name), make("span", { class: `da-badge da-${fit.level}` }, fit.text),
      make("small", {}, facts), card.concept ? make("small", {}, card.concept) : null,
      card.trigger_words.length ? make("small", {}, `words: ${card.trigger_words.slice(0, 4).join(", ")}`) : null, why),
    add);
};

const draw = () => {
  const { cards = [], found = 0, done = 0, of = 0 } = props.value || {};
  const open = new Set([...list.querySelectorAll("details[open]")].map((node) => node.closest("li").dataset.id));
  list.replaceChildren(...cards.map(drawn));
  for (const node of list.querySelectorAll("details")) node.open = open.has(node.closest("li").dataset.id);
  if (cards.length < found) {
    const more = make("button", { type: "button", class: "da-more" }, `Show more of ${found}`);
    more.addEventListener("click", () => trigger("more", {}));
    list.append(make("li", {}, more));
  }
  told.textContent = done < of ? `Reading headers: ${done} of ${of}` : `${found} of ${of} adapters`;
};

watch("value", draw);
draw();
