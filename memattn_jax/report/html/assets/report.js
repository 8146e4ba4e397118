"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const read = (id) => JSON.parse($(id).textContent);
  const facts = read("facts");
  const PAGE = 24; // prompts shown at once; only theirs are decoded
  const STRONGEST = 4; // cases beside the verdict
  const CLIP = 1500; // characters of a prompt before "show all"
  const SHADES = 8; // excess of the darkest token
  const NAMES = ["row", "flagged", "memorized", "extracted", "returned", "p", "similarity", "agreement", "kind", "error",
    "scores", "head"];
  const index = read("index").map((values, place) => {
    const entry = Object.fromEntries(NAMES.map((name, at) => [name, values[at]]));
    return Object.assign(entry, { place, text: entry.head.toLowerCase() });
  });
  const block = (entry) => read(`block-${entry.place}`);

  /* An element with properties, attributes (those with a dash, and "class") and children. */
  const h = (tag, properties = {}, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(properties)) {
      if (name === "class" || name.includes("-")) element.setAttribute(name, value);
      else element[name] = value;
    }
    element.append(...children.filter((child) => child !== null && child !== ""));
    return element;
  };
  const plot = (tag, attributes, ...children) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  };

  /* Text of strangers: what cannot be seen becomes its code point. Line ends, tabs, joiners and flags stay. */
  const KEPT = /\u{1F3F4}[\u{E0020}-\u{E007E}]+\u{E007F}|\r?\n|[\t\u200c\u200d]/u;
  const UNSEEN = new RegExp(`(${KEPT.source})|([\\p{Cc}\\p{Cf}\\p{Cs}\\p{Co}\\p{Cn}\\p{Zl}\\p{Zp}])`, "gu");
  const visible = (text) => {
    const parts = document.createDocumentFragment();
    let from = 0;
    for (const found of text.matchAll(UNSEEN)) {
      if (found[1]) continue;
      const code = `U+${found[2].codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`;
      parts.append(text.slice(from, found.index), h("span", { class: "control" }, code));
      from = found.index + found[2].length;
    }
    parts.append(text.slice(from));
    return parts;
  };
  const plain = (text) => visible(text).textContent;
  const number = (value) => (value === null || value === undefined ? "–" : String(Number(value.toPrecision(3))));
  const whole = (text) => text.replace(/[\ud800-\udbff]$/, ""); // without half an emoji at its end
  const cut = (text, length) => (text.length > length ? `${whole(text.slice(0, length))}…` : text);

  /* Which prompts, and in which order. */
  const SHOWN = {
    all: [`All ${facts.noun}`, () => true],
    flagged: ["Flagged", (entry) => entry.flagged],
    extracted: ["Extracted", (entry) => entry.extracted],
    memorized: ["Memorized", (entry) => entry.memorized],
    alarms: ["Flagged, not memorized", (entry) => entry.flagged && entry.memorized === false],
    control: ["Not flagged", (entry) => entry.flagged === false],
    missed: ["Memorized, not flagged", (entry) => entry.memorized && !entry.flagged],
    returned: ["Copies with the mitigation", (entry) => entry.returned > 0],
    errors: ["Errors", (entry) => entry.error],
  };
  const strength = (entry) => 4 * entry.extracted + 2 * entry.memorized + entry.flagged;
  const by = (name) => (entry) => entry[name];
  const rising = (value) => (a, b) => (value(a) ?? Infinity) - (value(b) ?? Infinity) || a.row - b.row;
  const falling = (value) => (a, b) => (value(b) ?? -Infinity) - (value(a) ?? -Infinity) || rising(by("p"))(a, b);
  const SORTED = { // of each: its label, how it compares, and what must be known of a prompt at least
    evidence: ["Strongest evidence", (a, b) => strength(b) - strength(a) || falling(by("similarity"))(a, b),
      by("flagged")],
    similarity: ["Similarity to a training picture", falling(by("similarity")), by("similarity")],
    agreement: ["Agreement between seeds", falling(by("agreement")), by("agreement")],
    p: ["p-value, lowest first", rising(by("p")), by("p")],
    ...Object.fromEntries(facts.detectors.map(({ name }, at) => {
      const score = (entry) => entry.scores[at];
      return [`score-${name}`, [`Score ${name}`, falling(score), score]];
    })),
    row: ["Row", (a, b) => a.row - b.row, by("row")],
    prompt: ["Prompt, A to Z", (a, b) => (a.text < b.text ? -1 : a.text > b.text ? 1 : a.row - b.row), by("row")],
  };
  let matching = [];
  let current = 0;
  const select = () => {
    const words = $("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    const kind = $("kind").value;
    const keep = SHOWN[$("show").value][1];
    matching = index.filter((entry) => keep(entry) && (kind === "" || entry.kind === Number(kind)) &&
      words.every((word) => entry.text.includes(word)));
    matching.sort(SORTED[$("sort").value][1]);
    if ($("direction").getAttribute("aria-pressed") === "true") matching.reverse();
    turn(0);
  };
  const pages = () => Math.max(1, Math.ceil(matching.length / PAGE));
  const turn = (page) => {
    current = Math.min(Math.max(page, 0), pages() - 1);
    const part = matching.slice(current * PAGE, (current + 1) * PAGE);
    $("gallery").replaceChildren(...part.map((entry) => card(entry)));
    const shown = part.length === matching.length ? "" : `; ${current * PAGE + 1} to ${current * PAGE + part.length} shown`;
    $("count").textContent = `${matching.length} of ${index.length} ${facts.noun}${shown}`;
    $("page").value = current + 1;
    $("page").max = pages();
    $("pages").textContent = `of ${pages()}`;
    $("previous").disabled = current === 0;
    $("next").disabled = current === pages() - 1;
    $("pager").hidden = pages() === 1;
  };

  /* A picture and what is known of it. */
  const link = (file, content) => h("a", { href: file.split("/").map(encodeURIComponent).join("/") }, content);
  const image = (source, alt) => {
    const element = h("img", { alt, decoding: "async" });
    element.addEventListener("load", () => element.classList.toggle("tiny", element.naturalWidth <= 64));
    element.src = source;
    return element;
  };
  const photo = (data, file, alt) => {
    if (file === null) return h("div", { class: "blank" }, "no picture");
    if (!(file in data.pictures)) return h("div", { class: "blank" }, link(file, file));
    return image(data.pictures[file], alt);
  };
  const caption = (made, measures = [facts.measure]) => h("figcaption", {}, `Seed ${made.seed}`,
    made.copy ? h("span", { class: "copy-mark" }, " copy") : "",
    ...measures.filter((name) => name in made.similarity)
      .map((name) => h("div", {}, `${name} ${number(made.similarity[name])}`)));
  const partner = (data) => {
    const made = data.images[data.best];
    if (made && made.nearest) {
      const source = plain(made.nearest_source ?? "");
      return h("figure", {}, photo(data, made.nearest, `Nearest training picture, ${source}`),
        h("figcaption", {}, "Nearest training picture"));
    }
    const other = data.images.find((each, at) => at !== data.best && each.file in data.pictures);
    return other ? h("figure", {}, photo(data, other.file, `Picture of seed ${other.seed}`), caption(other)) : null;
  };
  const badges = (entry, data) => {
    const words = [[entry.extracted, "extracted", "strong"], [entry.memorized, "memorized", "some"],
      [entry.flagged, "flagged", ""], [entry.flagged === false, "not flagged", ""],
      [data.verdict === "unknown", "no verdict", ""], [entry.returned, "copy with mitigation", "some"],
      [entry.error, "error", "some"]];
    return h("p", { class: "badges" }, ...words.filter(([applies]) => applies)
      .map(([, word, look]) => h("span", { class: `badge ${look}` }, word)));
  };
  const scores = (entry, over) => h("dl", { class: "scores" }, ...facts.detectors.map((detector, at) => {
    const value = entry.scores[at];
    const ends = [...(detector.range ?? []), detector.threshold, value].filter((end) => end !== null);
    const [low, high] = [Math.min(...ends), Math.max(...ends)];
    const x = (end) => `${high > low ? 100 * (end - low) / (high - low) : 50}%`;
    const marks = [plot("line", { class: "base", x1: 0, x2: "100%", y1: 7, y2: 7 })];
    if (detector.threshold !== null) {
      marks.push(plot("line", { class: "limit", x1: x(detector.threshold), x2: x(detector.threshold), y1: 1, y2: 13 }));
    }
    if (value !== null) marks.push(plot("circle", { cx: x(value), cy: 7, r: 4.5 }));
    const limit = detector.threshold === null ? "" : ` (${number(detector.threshold)})`;
    return h("div", { class: over.includes(detector.name) ? "beyond" : "" }, h("dt", {}, detector.name),
      plot("svg", { class: "score", "aria-hidden": "true" }, ...marks),
      h("dd", { title: "score (threshold)" }, number(value), limit));
  }));
  const title = (entry) => (entry.head === "" ? h("em", {}, "empty prompt") : visible(cut(entry.head, 200)));

  const card = (entry, brief = false) => {
    const data = block(entry);
    const made = data.images[data.best];
    const open = h("button", { type: "button", dir: "auto" }, title(entry));
    open.addEventListener("click", () => show(entry));
    return h("li", { class: "card" },
      facts.pictures ? h("div", { class: "pair" },
        made ? h("figure", {}, photo(data, made.file, `Picture of seed ${made.seed}`), caption(made))
          : h("div", { class: "blank" }, "no picture"),
        partner(data) ?? "") : "",
      h("h3", {}, open), badges(entry, data), brief ? "" : scores(entry, data.over));
  };

  /* One prompt, over the page. */
  const dialog = $("prompt");
  let opened = null;
  let first = null; // what the dialog was opened for; where the focus returns to by itself
  const show = (entry) => {
    opened = entry;
    dialog.replaceChildren(...sheet(entry, block(entry)));
    if (!dialog.open) {
      first = entry;
      dialog.showModal();
    }
    dialog.scrollTop = 0;
    history.replaceState(null, "", `#prompt-${entry.row}`);
  };
  const step = (by) => {
    const at = matching.indexOf(opened) + by;
    if (at < 0 || at >= matching.length) return;
    if (Math.floor(at / PAGE) !== current) turn(Math.floor(at / PAGE));
    show(matching[at]);
    dialog.querySelector(by > 0 ? ".forward" : ".back").focus();
  };
  dialog.addEventListener("close", () => {
    if (dialog.open) return; // the event comes late: another prompt may have been opened since
    dialog.replaceChildren();
    history.replaceState(null, "", "#prompts");
    if (opened === first) return;
    const at = matching.indexOf(opened) - current * PAGE;
    $("gallery").children[at]?.querySelector("button").focus();
  });
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());

  const sheet = (entry, data) => {
    const button = (label, look, action) => {
      const element = h("button", { type: "button", class: look }, label);
      element.addEventListener("click", action);
      return element;
    };
    const at = matching.indexOf(entry);
    const back = button("Previous", "back", () => step(-1));
    const forward = button("Next", "forward", () => step(1));
    back.disabled = at <= 0;
    forward.disabled = at < 0 || at === matching.length - 1;
    const bar = h("div", { class: "bar" }, h("h2", { id: "prompt-title" }, `Row ${entry.row}`), back, forward,
      button("Close", "close", () => dialog.close()));
    const words = h("p", { class: "text", dir: "auto", tabIndex: 0 });
    const write = (text) => words.replaceChildren(text === "" ? h("em", {}, "empty prompt") : visible(text));
    write(cut(data.prompt, CLIP));
    const all = button(`Show all ${data.prompt.length} characters`, "", () => {
      write(data.prompt);
      all.remove();
      words.focus();
    });
    const { stage, tokens } = attention(data);
    return [bar, h("div", { class: facts.pictures ? "sheet" : "sheet bare" }, facts.pictures ? stage : "",
      h("div", { class: "told" }, badges(entry, data), h("h3", {}, "Prompt"), words, data.prompt.length > CLIP ? all : "",
        entry.kind === null ? "" : h("p", { class: "muted small" }, `Kind: ${plain(facts.kinds[entry.kind])}`),
        data.error === null ? "" : h("p", { class: "notice" }, visible(data.error)),
        tokens ?? "",
        h("h3", {}, facts.detectors.some(({ threshold }) => threshold !== null) ? "Scores against thresholds" : "Scores"),
        scores(entry, data.over),
        data.verdict === null ? "" : h("p", { class: "small" },
          `Joint p-value ${number(entry.p)}. Verdict of the detectors: ${data.verdict}.`)),
      h("div", { class: "seeds" },
        ...strip("All seeds", data, data.images, data.agreement),
        ...strip("The same seeds with the mitigation", data, data.mitigated, data.mitigated_agreement)))];
  };
  const agreement = (found, images) => (found === null ? "" : h("p", { class: "small muted" },
    `${found.alike > 1 ? found.alike : "No two"} of ${images.length} agree at ${found.measure} ≥ ` +
    `${number(found.threshold)}: mean ${number(found.mean)}, highest ${number(found.highest)}.`));
  const strip = (label, data, images, found) => (images.length < 2 ? [] : [h("h3", {}, label), agreement(found, images),
    h("ul", { class: "strips" }, ...images.map((made) => {
      const picture = photo(data, made.file, `Picture of seed ${made.seed}, full size`);
      return h("li", {}, h("figure", {}, picture.tagName === "IMG" ? link(made.file, picture) : picture,
        caption(made, Object.keys(made.similarity))));
    }))]);

  /* The picture beside its nearest, and the tokens that show where they look. */
  const attention = (data) => {
    const made = data.images[data.best];
    const stack = h("div", { class: "stack" }, made ? photo(data, made.file, `Picture of seed ${made.seed}`)
      : h("div", { class: "blank" }, "no picture"));
    const heat = h("img", { alt: "", hidden: true });
    stack.append(heat);
    const reading = h("p", { class: "read small muted", role: "status" });
    const stage = h("div", { class: "stage" }, h("div", { class: "pair" },
      h("figure", {}, stack, made ? caption(made) : "",
        made?.file ? h("div", { class: "small" }, link(made.file, "Full size")) : ""),
      partner(data) ?? ""));
    let pinned = null; // the button whose map stays
    const look = (button) => {
      heat.hidden = !button?.map;
      if (button?.map) Object.assign(heat, { src: button.map, className: button.look });
      reading.textContent = button?.told ?? "";
    };
    const pressable = (button) => {
      const pin = () => {
        pinned?.setAttribute("aria-pressed", "false");
        pinned = pinned === button ? null : button;
        pinned?.setAttribute("aria-pressed", "true");
        look(pinned ?? button);
      };
      button.addEventListener("click", pin);
      for (const name of ["pointerenter", "focus"]) button.addEventListener(name, () => look(button));
      for (const name of ["pointerleave", "blur"]) button.addEventListener(name, () => look(pinned));
      return button;
    };
    if (data.mask) {
      const button = h("button", { type: "button", class: "where", "aria-pressed": "false" }, "Where the copy is");
      const told = "Bright: where it is like the training picture.";
      stage.append(pressable(Object.assign(button, { map: data.mask, look: "mask", told })));
    }
    if (data.tokens.length === 0) return { stage, tokens: null };
    const relative = data.excess.length > 0; // else there are no clean prompts to compare with
    const most = Math.max(...data.attention);
    const shade = (excess, share) => (relative ? Math.log(excess) / Math.log(SHADES) : share / most);
    const buttons = data.tokens.map((text, at) => {
      const [excess, share] = [data.excess[at] ?? null, data.attention[at] ?? null];
      const told = `“${plain(text)}”: ${share === null ? "" : `${number(100 * share)} % of the attention`}` +
        `${excess === null ? "" : `, ${number(excess)} times its share in clean prompts`}` +
        `${data.heat[at] ? ". Lighter: where it looks more, on the first seed." : "."}`;
      const button = h("button", { type: "button", dir: "auto", tabIndex: at ? -1 : 0, "aria-pressed": "false",
        class: data.blamed.includes(at) ? "token blamed" : "token" }, visible(text));
      button.style.setProperty("--shade", Math.min(1, Math.max(0, shade(excess, share) || 0)));
      return pressable(Object.assign(button, { map: data.heat[at], look: "heat", told }));
    });
    const group = h("div", { class: "tokens", role: "group", "aria-label": "Tokens; arrow keys move between them" },
      ...buttons);
    const moves = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Home: -buttons.length, End: buttons.length };
    group.addEventListener("keydown", (event) => {
      const move = moves[event.key];
      if (move === undefined) return;
      event.preventDefault();
      const at = buttons.indexOf(document.activeElement);
      const to = buttons[Math.min(Math.max(at + move, 0), buttons.length - 1)];
      buttons[at].tabIndex = -1;
      to.tabIndex = 0;
      to.focus();
    });
    const ends = relative
      ? ["Shade: attention relative to clean prompts, 1 ", ` ${SHADES} times or more. Underlined: the token stands out.`]
      : ["Shade: attention, 0 ", ` ${number(100 * most)} %.`];
    const legend = h("p", { class: "muted small" }, ends[0], h("span", { class: "scale" }), ends[1]);
    return { stage, tokens: h("div", {}, h("h3", {}, "Tokens"), group, reading, legend) };
  };

  /* Controls. */
  const option = (value, label) => h("option", { value }, label);
  $("show").append(...Object.entries(SHOWN).filter(([, [, keep]]) => index.some(keep))
    .map(([name, [label, keep]]) => option(name, `${label} (${index.filter(keep).length})`)));
  $("sort").append(...Object.entries(SORTED).filter(([, [,, known]]) => index.some((entry) => known(entry) !== null))
    .map(([name, [label]]) => option(name, label)));
  $("kind").append(option("", "All"), ...facts.kinds.map((name, at) => option(String(at), plain(name))));
  $("kind-label").hidden = facts.kinds.length === 0;
  if (index.some((entry) => entry.flagged)) $("show").value = "flagged";
  $("controls").addEventListener("input", select);
  $("controls").addEventListener("submit", (event) => event.preventDefault());
  $("direction").addEventListener("click", (event) => {
    const button = event.currentTarget;
    button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") !== "true"));
    select();
  });
  const leaf = (page) => { turn(page); $("prompts").scrollIntoView(); };
  $("previous").addEventListener("click", () => leaf(current - 1));
  $("next").addEventListener("click", () => leaf(current + 1));
  $("page").addEventListener("change", (event) => leaf(Number(event.target.value) - 1));
  $("copy")?.addEventListener("click", async () => {
    const text = $("card-text");
    try {
      await navigator.clipboard.writeText(text.textContent);
      $("copied").textContent = "Copied.";
    } catch { // the browser does not let this page
      getSelection().selectAllChildren(text);
      $("copied").textContent = "Selected; copy it with your keyboard.";
    }
  });
  select();
  const strongest = index.filter((entry) => entry.memorized).sort(SORTED.evidence[1]).slice(0, STRONGEST);
  if ($("strongest") && strongest.length > 0) {
    $("strongest").hidden = false;
    $("strongest").lastElementChild.append(...strongest.map((entry) => card(entry, true)));
  }
  const follow = (hash) => {
    const wanted = /^#prompt-(\d+)$/.exec(hash);
    const entry = wanted && index.find(({ row }) => row === Number(wanted[1]));
    if (!entry) return;
    if (!matching.includes(entry)) { $("show").value = "all"; select(); }
    show(entry);
  };
  // Of the event, not of the page: the event comes late too, and closing a prompt changes the page's.
  addEventListener("hashchange", (event) => follow(new URL(event.newURL).hash));
  follow(location.hash);
})();
