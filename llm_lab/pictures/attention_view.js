// The attention view: starts every view of the page that has not been started yet, so it needs no
// ids and no `document.currentScript` (a notebook may run the script somewhere else).
(() => {
  "use strict";
  const MEAN = -1; // in place of a head: the mean of all heads

  const make = (tag, className, text) => {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text; // a token is text, never markup
    return element;
  };

  // A weight in hundredths, or null where it is masked.
  const text = (value) => (value === null ? "–" : (value / 100).toFixed(2));
  const quoted = (token) => "\u201c" + token + "\u201d";

  class View {
    constructor(root, number) {
      this.root = root;
      this.name = "llm-av-" + number;
      const read = (part) => JSON.parse(root.querySelector("script.llm-av-" + part).textContent);
      this.spec = read("spec");
      const start = read("weights");
      this.codes = Uint8Array.from(atob(start.codes), (char) => char.charCodeAt(0));
      this.cross = this.spec.keys !== null;
      this.queries = this.spec.queries;
      this.keys = this.cross ? this.spec.keys : this.queries;
      this.layer = start.layer;
      this.head = start.head === null ? MEAN : start.head;
      this.kept = Math.floor(this.queries.length / 2); // shows both sides of a causal mask
      this.shown = this.kept;
      this.build();
      this.changeLayer();
    }

    // The weight of a head, in hundredths.
    weight(head, query, key) {
      const { heads } = this.spec;
      const at = (h) =>
        this.codes[((this.layer * heads + h) * this.queries.length + query) * this.keys.length + key];
      if (head !== MEAN) return at(head) === 0 ? null : at(head) - 1;
      let sum = 0;
      let open = false;
      for (let h = 0; h < heads; h++) {
        if (at(h) > 0) {
          sum += at(h) - 1;
          open = true;
        }
      }
      return open ? sum / heads : null;
    }

    row(head, query) {
      return this.keys.map((_, key) => this.weight(head, query, key));
    }

    // ---- building, once

    build() {
      const note = this.root.querySelector(".llm-av-note");
      note.className = "llm-av-help";
      note.textContent =
        "Point at a token to see where it looks; click to keep it. " +
        "By keyboard: Tab to the tokens, then the arrow keys.";
      this.details = this.root.querySelector(".llm-av-details");
      this.details.open = false;
      this.details.addEventListener("toggle", () => this.resize());
      const app = make("div", "llm-av-app");
      app.append(this.buildBar(), this.buildTokens(), this.buildStatus(), this.buildHeads());
      note.after(app);
      // JupyterLab must not take a plain key for one of its commands: "x" cuts the cell.
      this.root.addEventListener("keydown", (event) => {
        const command = event.ctrlKey || event.altKey || event.metaKey;
        if (!command && !["Escape", "Tab"].includes(event.key)) event.stopPropagation();
      });
      const reopen = [];
      addEventListener("beforeprint", () => {
        reopen.push(this.details.open);
        this.details.open = true;
      });
      addEventListener("afterprint", () => {
        if (reopen.length) this.details.open = reopen.pop();
      });
    }

    buildBar() {
      const bar = make("div", "llm-av-bar");
      const label = make("label", "llm-av-layer", "Layer ");
      this.select = make("select");
      for (let layer = 0; layer < this.spec.layers; layer++) {
        this.select.append(new Option(String(layer), String(layer)));
      }
      this.select.value = String(this.layer);
      this.select.addEventListener("change", () => {
        this.layer = Number(this.select.value);
        this.changeLayer();
      });
      label.append(this.select);
      const legend = make("div", "llm-av-legend");
      legend.append("weight 0 ", make("span", "llm-av-ramp"), " 1");
      if (this.codes.includes(0)) legend.append(make("span", "llm-av-hatch"), "masked");
      bar.append(label, legend);
      return bar;
    }

    buildTokens() {
      const box = make("div", this.cross ? "llm-av-tokens llm-av-two" : "llm-av-tokens");
      const group = make("div", "llm-av-chips");
      group.setAttribute("role", "radiogroup");
      group.setAttribute("aria-label", this.cross ? "Target token, which looks" : "Token, which looks");
      group.setAttribute("translate", "no");
      this.radios = this.queries.map((token, index) => {
        const chip = this.chip("button", token);
        chip.type = "button";
        chip.setAttribute("role", "radio");
        chip.addEventListener("pointerenter", (event) => {
          if (event.pointerType !== "touch") this.show(index);
        });
        chip.addEventListener("click", () => this.keep(index));
        chip.addEventListener("focus", () => this.keep(index));
        group.append(chip);
        return chip;
      });
      group.addEventListener("pointerleave", () => this.show(this.kept));
      group.addEventListener("keydown", (event) => this.key(event));
      if (!this.cross) {
        this.chips = this.radios;
        box.append(group);
        return box;
      }
      const list = make("div", "llm-av-chips");
      list.setAttribute("role", "list");
      list.setAttribute("aria-label", "Source tokens, looked at");
      list.setAttribute("translate", "no");
      this.chips = this.keys.map((token) => {
        const chip = this.chip("div", token);
        chip.setAttribute("role", "listitem");
        list.append(chip);
        return chip;
      });
      const side = (heading, content) => {
        const column = make("div", "llm-av-side");
        column.append(make("div", "llm-av-heading", heading), content);
        return column;
      };
      box.append(side("Target: looks", group), side("Source: is looked at", list));
      return box;
    }

    chip(tag, token) {
      const chip = make(tag, "llm-av-chip");
      const number = make("span", "llm-av-number");
      // The name of a token to choose is the token alone; its number belongs to the chosen one.
      if (tag === "button") number.setAttribute("aria-hidden", "true");
      chip.append(make("bdi", "llm-av-token", token), " ");
      if (tag === "div" || !this.cross) chip.append(number);
      return chip;
    }

    buildStatus() {
      this.status = make("p", "llm-av-status");
      this.status.setAttribute("role", "status");
      return this.status;
    }

    buildHeads() {
      const box = make("div", "llm-av-heads");
      box.setAttribute("role", "radiogroup");
      box.setAttribute("aria-label", "Head");
      const part = make("div");
      part.append(
        make("p", "llm-av-help",
          (this.spec.heads > 1 ? "Choose a head. " : "") + "A map has a row for each token that looks, a column for each token " +
          "looked at; the frame is the row of the token above, with its strongest weight below."),
        box,
      );
      const heads = this.spec.heads > 1 ? [MEAN] : [];
      for (let head = 0; head < this.spec.heads; head++) heads.push(head);
      if (heads.length === 1) this.head = 0;
      this.cards = heads.map((head) => {
        const label = make("label", "llm-av-card");
        const input = make("input");
        input.type = "radio";
        input.name = this.name + "-head";
        input.value = String(head);
        input.checked = head === this.head;
        input.addEventListener("change", () => {
          this.head = head;
          this.update();
        });
        const face = make("span", "llm-av-face");
        const map = make("span", "llm-av-map");
        const canvas = make("canvas");
        canvas.width = this.keys.length;
        canvas.height = this.queries.length;
        canvas.setAttribute("aria-hidden", "true");
        const line = make("span", "llm-av-line");
        line.style.setProperty("--part", 1 / this.queries.length);
        map.style.aspectRatio = Math.min(Math.max(canvas.width / canvas.height, 0.7), 1.6);
        map.append(canvas, line);
        const best = make("bdi", "llm-av-best");
        best.setAttribute("translate", "no");
        const value = make("span", "llm-av-value");
        const answer = make("span", "llm-av-answer");
        answer.append(best, " ", value);
        face.append(
          make("span", "llm-av-name", head === MEAN ? "all heads" : "head " + head), " ",
          map, answer,
        );
        label.append(input, face);
        box.append(label);
        return { head, canvas, line, best, value };
      });
      box.style.setProperty("--cards", this.cards.length);
      return part;
    }

    // ---- reacting

    key(event) {
      const last = this.queries.length - 1;
      const steps = {
        ArrowRight: this.kept + 1, ArrowDown: this.kept + 1,
        ArrowLeft: this.kept - 1, ArrowUp: this.kept - 1, Home: 0, End: last,
      };
      if (!(event.key in steps) || event.ctrlKey || event.altKey || event.metaKey) return;
      event.preventDefault();
      const next = Math.min(Math.max(steps[event.key], 0), last);
      this.radios[next].focus();
    }

    keep(index) {
      this.kept = index;
      this.show(index);
    }

    show(index) {
      this.shown = index;
      this.update();
    }

    changeLayer() {
      this.paint();
      this.update();
    }

    update() {
      const row = this.row(this.head, this.shown);
      this.radios.forEach((radio, index) => {
        radio.setAttribute("aria-checked", String(index === this.kept));
        radio.tabIndex = index === this.kept ? 0 : -1;
        radio.classList.toggle("llm-av-shown", index === this.shown);
      });
      this.chips.forEach((chip, key) => {
        chip.style.setProperty("--w", (row[key] || 0) / 100);
        chip.classList.toggle("llm-av-masked", row[key] === null);
        chip.querySelector(".llm-av-number").textContent = text(row[key]);
      });
      this.cards.forEach((card) => {
        const key = this.strongest(card.head, this.shown);
        card.best.textContent = this.keys[key];
        card.value.textContent = text(this.weight(card.head, this.shown, key));
        card.line.style.setProperty("--at", this.shown / this.queries.length);
      });
      this.status.textContent = this.sentence(row);
      this.writeTable();
      this.resize();
    }

    strongest(head, query) {
      const row = this.row(head, query).map((value) => (value === null ? -1 : value));
      return row.indexOf(Math.max(...row));
    }

    sentence(row) {
      const order = row.map((_, key) => key).filter((key) => row[key] !== null);
      order.sort((a, b) => row[b] - row[a] || a - b);
      const strong = order.filter((key, rank) => rank === 0 || row[key] >= 0.5); // not "0.00"
      const named = strong.slice(0, 3).map((key) => quoted(this.keys[key]) + " " + text(row[key]));
      const who = this.head === MEAN ? "mean of " + this.spec.heads + " heads" : "head " + this.head;
      const where = named.length ? "looks most at " + named.join(", ") : "looks at nothing";
      return `Layer ${this.layer}, ${who}: ${quoted(this.queries[this.shown])} ${where}.`;
    }

    writeTable() {
      const state = this.layer + " " + this.head;
      if (state === this.written) return;
      this.written = state;
      const all = this.head === MEAN;
      const table = make("table");
      table.append(
        make("caption", "", all
          ? `Layer ${this.layer}: the token that each head looks at most, and its weight.`
          : `Layer ${this.layer}, head ${this.head}: the weight that each token (row) gives to ` +
            "each token (column). – means masked."),
      );
      const heads = Array.from({ length: this.spec.heads }, (_, head) => head);
      const columns = all ? heads.map((head) => "head " + head) : this.keys;
      const header = table.createTHead().insertRow();
      for (const name of ["token", ...columns]) {
        const cell = make("th", "", name);
        cell.scope = "col";
        header.append(cell);
      }
      const body = table.createTBody();
      this.queries.forEach((query, t) => {
        const line = body.insertRow();
        const name = make("th", "", query);
        name.scope = "row";
        line.append(name);
        const cells = all
          ? heads.map((head) => {
              const key = this.strongest(head, t);
              return this.keys[key] + " " + text(this.weight(head, t, key));
            })
          : this.row(this.head, t).map(text);
        for (const value of cells) line.append(make("td", "", value));
      });
      this.root.querySelector("table").replaceWith(table);
    }

    // The small maps: one line a query, one column a key.
    paint() {
      const style = getComputedStyle(this.root);
      const color = (name) => style.getPropertyValue(name).trim().split(/\s+/).map(Number);
      const hue = color("--av-hue");
      const masked = color("--av-masked");
      for (const { head, canvas } of this.cards) {
        const context = canvas.getContext("2d");
        const image = context.createImageData(canvas.width, canvas.height);
        for (let query = 0; query < canvas.height; query++) {
          this.row(head, query).forEach((value, key) => {
            const rgba = value === null ? [...masked, 255] : [...hue, 2.55 * value];
            image.data.set(rgba, 4 * (query * canvas.width + key));
          });
        }
        context.putImageData(image, 0, 0);
      }
    }

    // A Colab output is a frame that keeps its height unless asked.
    resize() {
      const colab = window.google && window.google.colab;
      if (colab && colab.output && colab.output.resizeIframeToContent) {
        colab.output.resizeIframeToContent();
      }
    }
  }

  const views = [];
  for (const root of document.querySelectorAll(".llm-av:not([data-started])")) {
    root.dataset.started = "";
    window.llmAttentionViews = (window.llmAttentionViews || 0) + 1;
    views.push(new View(root, window.llmAttentionViews));
  }
  // Another theme has another hue.
  const repaint = () => views.forEach((view) => view.paint());
  for (const element of [document.documentElement, document.body]) {
    new MutationObserver(repaint).observe(element, { attributes: true });
  }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);
})();
