// Zones and lines on a camera's picture, by mouse: click corners, drag them, drag the whole, insert at an edge's middle.
export default {
  props: { camera: String, shapes: Array, chosen: String, tool: String },
  template: `
    <div class="st-editor" tabindex="0" ref="pad" @keydown="key" :data-camera="camera" :data-tool="tool">
      <img ref="image" :alt="camera" draggable="false" @load="loaded">
      <svg v-if="w" :viewBox="'0 0 ' + w + ' ' + h" :class="{ 'st-drawing': drawing }"
           @pointermove="move" @pointerup="up" @pointerdown="down" @dblclick.prevent="finish" @contextmenu.prevent>
        <g v-for="s in all" :key="s.kind + s.name" :class="{ chosen: id(s) === chosen }" :data-name="s.name">
          <polygon v-if="s.kind === 'zone'" class="st-zone" :points="path(s.points)" @pointerdown="grab($event, s)"/>
          <template v-else>
            <line class="st-wide" v-bind="ends(s)" @pointerdown="grab($event, s)"/>
            <line class="st-line" v-bind="ends(s)"/>
            <path class="st-arrow" :d="arrow(s)"/>
          </template>
          <text :x="top(s)[0] * w + 6" :y="top(s)[1] * h - 8">{{ s.name }}</text>
          <template v-if="id(s) === chosen && !drawing">
            <template v-if="s.kind === 'zone'">
              <circle v-for="(p, i) in middles(s)" class="st-middle" :cx="p[0] * w" :cy="p[1] * h" r="4"
                      @pointerdown="insert($event, s, i + 1, p)"/>
            </template>
            <circle v-for="(p, i) in s.points" class="st-corner" :cx="p[0] * w" :cy="p[1] * h" r="6"
                    @pointerdown="corner($event, s, i)"/>
          </template>
        </g>
        <g v-if="points.length" class="st-new">
          <polyline :points="path(at ? [...points, at] : points)"/>
          <circle v-for="(p, i) in points" :cx="p[0] * w" :cy="p[1] * h" :r="i ? 4 : 7"/>
        </g>
      </svg>
      <div class="st-hint">{{ hint }}</div>
    </div>`,
  emits: ["drawn", "moved", "pick", "drop"],
  data: () => ({ w: 0, h: 0, points: [], at: null, held: null, draft: null }),
  computed: {
    drawing() { return this.tool === "zone" || this.tool === "line"; },
    all() { return (this.shapes || []).map((s) => (this.draft && this.id(s) === this.id(this.draft) ? this.draft : s)); },
    hint() {
      if (this.tool === "line") return this.points.length ? "click where the line ends" : "click where the line begins";
      if (this.tool === "zone") {
        if (!this.points.length) return "click the corners of the zone";
        return this.points.length < 3 ? "click the next corner (Esc: give up)" : "click the first corner, or press Enter, to close it";
      }
      return this.chosen ? "drag corners; small dots add one; right click removes one; Del removes the zone" : "click a zone or line to change it";
    },
  },
  watch: {
    tool() { this.points = []; this.at = null; },
    camera() { this.draft = null; this.refresh(); },
    shapes() { this.draft = null; },
  },
  mounted() {
    this.observer = new ResizeObserver(() => this.loaded());
    this.observer.observe(this.$refs.image);
    this.refresh();
    this.timer = setInterval(() => { if (!document.hidden) this.refresh(); }, 1000);
  },
  beforeUnmount() { clearInterval(this.timer); this.observer.disconnect(); },
  methods: {
    id(s) { return s.kind + ":" + s.name; },
    refresh() {
      const next = new Image();
      next.onload = () => { if (this.$refs.image) this.$refs.image.src = next.src; };
      next.src = `/live/${encodeURIComponent(this.camera)}.jpg?t=${Date.now()}`;
    },
    loaded() { this.w = this.$refs.image.clientWidth; this.h = this.$refs.image.clientHeight; },
    path(points) { return points.map((p) => p[0] * this.w + "," + p[1] * this.h).join(" "); },
    ends(s) {
      const [a, b] = s.points;
      return { x1: a[0] * this.w, y1: a[1] * this.h, x2: b[0] * this.w, y2: b[1] * this.h };
    },
    arrow(s) { // from left to right of who looks along the line
      const { x1, y1, x2, y2 } = this.ends(s), d = Math.hypot(x2 - x1, y2 - y1) || 1;
      const x = (x1 + x2) / 2, y = (y1 + y2) / 2, nx = -(y2 - y1) / d, ny = (x2 - x1) / d, tx = (x2 - x1) / d, ty = (y2 - y1) / d;
      return `M${x} ${y}L${x + 22 * nx} ${y + 22 * ny}M${x + 15 * nx + 5 * tx} ${y + 15 * ny + 5 * ty}L${x + 22 * nx} ${y + 22 * ny}L${x + 15 * nx - 5 * tx} ${y + 15 * ny - 5 * ty}`;
    },
    top(s) { return s.points.reduce((a, b) => (b[1] < a[1] ? b : a)); },
    middles(s) {
      return s.points.map((p, i) => { const q = s.points[(i + 1) % s.points.length]; return [(p[0] + q[0]) / 2, (p[1] + q[1]) / 2]; });
    },
    where(event) {
      const box = this.$refs.image.getBoundingClientRect();
      const clip = (v) => Math.round(1e4 * Math.min(1, Math.max(0, v))) / 1e4;
      return [clip((event.clientX - box.left) / box.width), clip((event.clientY - box.top) / box.height)];
    },
    near(p, q) { return Math.hypot((p[0] - q[0]) * this.w, (p[1] - q[1]) * this.h) < 10; },
    down(event) {
      this.$refs.pad.focus();
      if (event.button) return;
      const p = this.where(event);
      if (!this.drawing) { if (event.target.tagName === "svg") this.$emit("pick", null); return; }
      if (this.tool === "zone" && this.points.length >= 3 && this.near(p, this.points[0])) { this.finish(); return; }
      if (this.points.length && this.near(p, this.points[this.points.length - 1])) return;
      this.points = [...this.points, p];
      if (this.tool === "line" && this.points.length === 2) this.finish();
    },
    finish() {
      const need = this.tool === "line" ? 2 : 3;
      if (!this.drawing || this.points.length < need) return;
      const points = this.points;
      this.points = []; this.at = null;
      this.$emit("drawn", { kind: this.tool, points });
    },
    key(event) {
      if (event.key === "Enter") this.finish();
      else if (event.key === "Escape") { this.points = []; this.at = null; this.draft = this.held = null; }
      else if ((event.key === "Delete" || event.key === "Backspace") && this.chosen && !this.drawing) this.$emit("drop", this.chosen);
      else return;
      event.preventDefault();
    },
    hold(event, shape, change) {
      event.target.closest("svg").setPointerCapture(event.pointerId);
      this.draft = { ...shape, points: shape.points.map((p) => [...p]) };
      this.held = { from: this.where(event), points: this.draft.points, change, moved: false };
    },
    grab(event, shape) {
      if (this.drawing || event.button) return;
      event.stopPropagation();
      this.$refs.pad.focus();
      this.$emit("pick", this.id(shape));
      this.hold(event, shape, (points, dx, dy) => {
        const low = [0, 1].map((k) => Math.min(...points.map((p) => p[k]))), high = [0, 1].map((k) => Math.max(...points.map((p) => p[k])));
        const x = Math.min(1 - high[0], Math.max(-low[0], dx)), y = Math.min(1 - high[1], Math.max(-low[1], dy));
        return points.map((p) => [p[0] + x, p[1] + y]);
      });
    },
    corner(event, shape, i) {
      event.stopPropagation();
      this.$refs.pad.focus();
      if (event.button === 2) {
        if (shape.kind === "zone" && shape.points.length > 3) this.tell({ ...shape, points: shape.points.filter((_, j) => j !== i) });
        return;
      }
      this.hold(event, shape, (points, dx, dy, p) => points.map((q, j) => (j === i ? p : q)));
    },
    insert(event, shape, i, p) {
      if (event.button) return;
      const points = [...shape.points.slice(0, i), p, ...shape.points.slice(i)];
      this.corner(event, { ...shape, points }, i);
    },
    move(event) {
      const p = this.where(event);
      if (this.drawing) { this.at = p; return; }
      if (!this.held) return;
      const { from, points, change } = this.held;
      this.held.moved = this.held.moved || Math.hypot((p[0] - from[0]) * this.w, (p[1] - from[1]) * this.h) > 2;
      this.draft = { ...this.draft, points: change(points, p[0] - from[0], p[1] - from[1], p) };
    },
    up() {
      if (!this.held) return;
      const { moved } = this.held;
      this.held = null;
      if (moved) this.tell(this.draft);
      else this.draft = null;
    },
    tell(shape) {
      this.draft = shape; // until the file has it
      this.$emit("moved", { kind: shape.kind, name: shape.name, points: shape.points.map((p) => p.map((v) => Math.round(1e4 * v) / 1e4)) });
    },
    revert() { this.draft = null; },
  },
};
