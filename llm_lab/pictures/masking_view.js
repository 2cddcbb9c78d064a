// The masking view: starts every view of the page that has not been started yet. It needs no ids
// and no `document.currentScript` (a notebook may run the script somewhere else).
(() => {
  "use strict";
  const NONE = "–";
  const [NOT_CHOSEN, AS_MASK, AS_RANDOM, AS_IS] = [0, 1, 2, 3];
  const KINDS = [[AS_MASK, "[MASK]"], [AS_RANDOM, "random token"], [AS_IS, "unchanged"]];

  const make = (tag, className, text) => {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text; // a token is text, never markup
    return element;
  };

  // Numbers from 0 to 1 that follow from the seed (mulberry32): a class sees the same maskings.
  const randomFrom = (seed) => () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };

  class View {
    constructor(root) {
      this.root = root;
      this.spec = JSON.parse(root.querySelector("script.llm-mk-spec").textContent);
      this.random = randomFrom(this.spec.seed);
      this.ordinary = this.spec.special.filter((special) => !special).length;
      this.drawing = 1;
      this.counts = [0, 0, 0, 0];
      this.now = this.spec.first;
      this.count();
      this.build();
      this.show(); // the same as before, made here
    }

    build() {
      const note = this.root.querySelector(".llm-mk-note");
      note.className = "llm-mk-help";
      note.textContent =
        "Above: what the model reads. Below a chosen token: its label, the token to predict.";
      const bar = make("div", "llm-mk-bar");
      for (const [text, times] of [["Mask it again", 1], ["100 times more", 100]]) {
        const button = make("button", "llm-mk-button", text);
        button.type = "button";
        button.addEventListener("click", () => this.again(times));
        bar.append(button);
      }
      note.after(bar);
      const details = this.root.querySelector(".llm-mk-details");
      details.addEventListener("toggle", () => this.resize());
      // JupyterLab must not take a plain key for one of its commands: "x" cuts the cell.
      this.root.addEventListener("keydown", (event) => {
        const command = event.ctrlKey || event.altKey || event.metaKey;
        if (!command && !["Escape", "Tab"].includes(event.key)) event.stopPropagation();
      });
    }

    again(times) {
      for (let i = 0; i < times; i++) {
        this.now = this.spec.tokens.map((token, place) => this.draw(token, place));
        this.drawing += 1;
        this.count();
      }
      this.show();
    }

    // What the model reads at one place, and why: 15 %, then 80 / 10 / 10.
    draw(token, place) {
      const [chosen, masked, replaced] = this.spec.shares;
      if (this.spec.special[place] || this.random() >= chosen) return [token, NOT_CHOSEN];
      const how = this.random();
      if (how < masked) return [this.spec.mask, AS_MASK];
      if (how >= masked + replaced) return [token, AS_IS];
      const words = this.spec.vocabulary;
      const other = words[Math.floor(this.random() * words.length)];
      return [other, other === token ? AS_IS : AS_RANDOM]; // nobody could tell the difference
    }

    count() {
      for (const [, how] of this.now) this.counts[how] += 1;
    }

    // ---- showing

    show() {
      this.root.querySelector(".llm-mk-chips").replaceWith(this.chips());
      this.root.querySelector(".llm-mk-status").textContent = this.sentence();
      this.root.querySelector(".llm-mk-counts").replaceWith(this.shares());
      this.root.querySelector(".llm-mk-table").replaceWith(this.table());
      this.resize();
    }

    chips() {
      const list = make("ol", "llm-mk-chips");
      list.setAttribute("role", "list");
      list.setAttribute("translate", "no");
      this.now.forEach(([reads, how], place) => {
        let name = "llm-mk-chip" + (this.spec.special[place] ? " llm-mk-special" : "");
        if (how !== NOT_CHOSEN) name += " llm-mk-chosen llm-mk-how" + how;
        const chip = make("li", name);
        chip.append(make("bdi", "llm-mk-token", reads));
        if (how !== NOT_CHOSEN) {
          const label = make("span", "llm-mk-label", "label ");
          label.append(make("bdi", "", this.spec.tokens[place]));
          chip.append(label);
        }
        list.append(chip);
      });
      return list;
    }

    sentence() {
      const found = (how) => this.now.filter((one) => one[1] === how).length;
      const parts = KINDS.map(([how, name]) => found(how) + " " + name).join(", ");
      const chosen = this.now.length - found(NOT_CHOSEN);
      return `Masking ${this.drawing}: ${chosen} of ${this.ordinary} tokens chosen: ${parts}.`;
    }

    shares() {
      const [chosen, masked, replaced] = this.spec.shares;
      const rules = [0, masked, replaced, 1 - masked - replaced];
      const all = this.counts[AS_MASK] + this.counts[AS_RANDOM] + this.counts[AS_IS];
      const rows = [["chosen", all, this.ordinary * this.drawing, chosen]];
      for (const [how, name] of KINDS) rows.push([name, this.counts[how], all, rules[how]]);
      const plural = this.drawing === 1 ? "masking" : "maskings";
      const cells = rows.map(([name, count, total, rule]) => [
        name, `${count} of ${total}`, total ? ((100 * count) / total).toFixed(1) + " %" : NONE,
        (100 * rule).toFixed(0) + " %",
      ]);
      return this.written("llm-mk-counts", `Counts over ${this.drawing} ${plural}`,
        ["tokens", "all maskings", "share", "rule"], cells);
    }

    table() {
      const cells = this.now.map(([reads, how], place) => {
        const token = this.spec.tokens[place];
        return [String(place), token, reads, how === NOT_CHOSEN ? NONE : token];
      });
      return this.written("llm-mk-table",
        "Each token, what the model reads, and its label. – means: no label.",
        ["place", "text", "model reads", "label"], cells);
    }

    written(className, caption, columns, rows) {
      const table = make("table", className);
      table.append(make("caption", "", caption));
      const header = table.createTHead().insertRow();
      for (const column of columns) {
        const cell = make("th", "", column);
        cell.scope = "col";
        header.append(cell);
      }
      const body = table.createTBody();
      for (const [name, ...values] of rows) {
        const line = body.insertRow();
        const first = make("th", "", name);
        first.scope = "row";
        line.append(first);
        for (const value of values) line.append(make("td", "", value));
      }
      return table;
    }

    // A Colab output is a frame that keeps its height unless asked.
    resize() {
      const colab = window.google && window.google.colab;
      if (colab && colab.output && colab.output.resizeIframeToContent) {
        colab.output.resizeIframeToContent();
      }
    }
  }

  for (const root of document.querySelectorAll(".llm-mk:not([data-started])")) {
    root.dataset.started = "";
    new View(root);
  }
})();
