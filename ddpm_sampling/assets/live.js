// A diffusion model in one file: the network that knows noise, and the loop that draws with it.
// Plain JavaScript that asks nothing of a page: it runs in a Web Worker, and in Node just as well.
// Explained piece by piece in nbs/7_app/09_live.ipynb, under the same headings.

// # Weights
// A checkpoint in the safetensors layout: eight bytes with the length of a header in JSON, the
// header, then the numbers, 16 bits each. The header says where each tensor lies, and the record
// of save_checkpoint in it says what the network was trained for.
const HALVES = Float32Array.from({length: 65536}, (_, bits) => {     // what 16 bits mean
  const sign = bits >> 15 ? -1 : 1, exponent = bits >> 10 & 31, rest = bits & 1023;
  return sign*(exponent ? 2**(exponent - 25)*(1024 + rest) : 2**-24*rest);
});

function readCheckpoint(bytes) {
  const length = Number(new DataView(bytes.buffer, bytes.byteOffset).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(bytes.subarray(8, 8 + length)));
  const record = JSON.parse(header.__metadata__.ddpm_sampling);
  delete header.__metadata__;
  const halves = new Uint16Array(bytes.slice(8 + length).buffer), weights = {};
  for (const [name, {shape, data_offsets: [from, to]}] of Object.entries(header)) {
    const data = new Float32Array(halves.subarray(from/2, to/2)).map(bits => HALVES[bits]);
    weights[name] = {shape, data};
  }
  return {weights, record, abar: signalLeft(record.schedule.betas)};
}

function signalLeft(betas) {                             // ᾱ_0 = 1, ᾱ_t = ᾱ_{t−1}(1 − β_t)
  const abar = [1];
  for (const beta of betas) abar.push(abar.at(-1)*(1 - beta));
  return abar;
}

// # Planes
// What flows through the network: c planes of h × w numbers, one plane after the other.
const planes = (c, h, w, data = new Float32Array(c*h*w)) => ({c, h, w, data});

function framed(x, p) {                                  // a frame of p zeros around each plane
  const out = planes(x.c, x.h + 2*p, x.w + 2*p);
  for (let row = 0; row < x.c*x.h; row++) {
    const c = Math.floor(row/x.h), y = row%x.h;
    out.data.set(x.data.subarray(row*x.w, (row + 1)*x.w), ((c*out.h) + y + p)*out.w + p);
  }
  return out;
}

// # Convolution
// Each number of the answer is a filter, laid over the place: the sum of all products. Four
// filters and two neighbours at a time, since what was read once then serves eight sums.
function packed({shape: [outs, c, k], data}) {           // filters by fours, in the order of use
  const w = new Float32Array(4*Math.ceil(outs/4)*c*k*k), size = c*k*k;
  for (let o = 0; o < outs; o++)
    for (let j = 0; j < size; j++) w[((o >> 2)*size + j)*4 + o%4] = data[o*size + j];
  return w;
}

function convolve(x, w, bias, k) {                       // k × k filters, as many as biases
  const outs = bias.length, n = x.h*x.w, sum = new Float32Array(4*Math.ceil(outs/4)*n);
  const {data: v, h, w: width} = framed(x, k >> 1);
  for (let o = 0; o < outs; o += 4)
    for (let y = 0; y < x.h; y++)
      for (let u = 0; u < x.w; u += 2) {
        let a0 = 0, a1 = 0, a2 = 0, a3 = 0, b0 = 0, b1 = 0, b2 = 0, b3 = 0, j = o*x.c*k*k;
        for (let c = 0; c < x.c; c++)
          for (let dy = 0; dy < k; dy++) {
            let at = (c*h + y + dy)*width + u, a = v[at];
            for (let dx = 0; dx < k; dx++) {
              const b = v[++at], w0 = w[j], w1 = w[j + 1], w2 = w[j + 2], w3 = w[j + 3];
              a0 += a*w0; a1 += a*w1; a2 += a*w2; a3 += a*w3;
              b0 += b*w0; b1 += b*w1; b2 += b*w2; b3 += b*w3;
              a = b; j += 4;
            }
          }
        const at = o*n + y*x.w + u;
        sum[at] = a0; sum[at + n] = a1; sum[at + 2*n] = a2; sum[at + 3*n] = a3;
        sum[at + 1] = b0; sum[at + n + 1] = b1; sum[at + 2*n + 1] = b2; sum[at + 3*n + 1] = b3;
      }
  for (let o = 0; o < outs; o++) for (let i = o*n; i < o*n + n; i++) sum[i] += bias[o];
  return planes(outs, x.h, x.w, sum.subarray(0, outs*n));
}

// # Normalisation
// Group norm: eight groups of planes, each brought to mean 0 and deviation 1, then scaled and
// shifted plane by plane; and SiLU, v·sigmoid(v), in the same pass.
const silu = v => v/(1 + Math.exp(-v));

function normalise({c, h, w, data: v}, scale, shift, groups = 8) {
  const out = planes(c, h, w), n = h*w, each = c/groups, size = each*n, to = out.data;
  for (let g = 0; g < groups; g++) {
    let mean = 0, square = 0;
    for (let i = g*size; i < (g + 1)*size; i++) mean += v[i]/size;
    for (let i = g*size; i < (g + 1)*size; i++) square += (v[i] - mean)*(v[i] - mean);
    const deviation = Math.sqrt(square/size + 1e-5);
    for (let p = g*each; p < (g + 1)*each; p++) {
      const a = scale[p]/deviation, b = shift[p] - mean*a;
      for (let i = p*n; i < (p + 1)*n; i++) to[i] = silu(a*v[i] + b);
    }
  }
  return out;
}

// # Half and double
function halved(x) {                                     // each 2 × 2 square becomes its mean
  const out = planes(x.c, x.h/2, x.w/2);
  for (let row = 0, i = 0; row < x.c*out.h; row++)
    for (let u = 0; u < x.w; u += 2, i++) {
      const at = 2*row*x.w + u;
      out.data[i] = (x.data[at] + x.data[at + 1] + x.data[at + x.w] + x.data[at + x.w + 1])/4;
    }
  return out;
}

function doubled(x) {                                    // each number becomes a 2 × 2 square
  const out = planes(x.c, 2*x.h, 2*x.w);
  for (let row = 0, i = 0; row < x.c*out.h; row++)
    for (let u = 0; u < out.w; u++) out.data[i++] = x.data[(row >> 1)*x.w + (u >> 1)];
  return out;
}

function stacked(a, b) {                                 // the planes of a, then those of b
  const out = planes(a.c + b.c, a.h, a.w);
  out.data.set(a.data);
  out.data.set(b.data, a.data.length);
  return out;
}

// # Time
// The level t as waves of many lengths, sines then cosines, mixed by two linear layers.
function waves(t, dim) {
  const f = Math.fround, half = dim/2, out = new Float32Array(dim);
  for (let i = 0; i < half; i++) {
    const angle = f(t*f(Math.exp(f(f(-f(Math.log(10000))*i)/(half - 1)))));
    out[i] = Math.sin(angle);
    out[half + i] = Math.cos(angle);
  }
  return out;
}

function linear(x, {data: w}, {data: bias}) {
  return bias.map((sum, o) => {
    for (let i = 0; i < x.length; i++) sum += x[i]*w[o*x.length + i];
    return sum;
  });
}

// # Network
// The U-Net: down in three levels, through the middle, and up again, where each level also sees
// what was there on the way down. From x_t and its index it predicts the noise in x_t.
function unet({weights, record: {network: {sizes: [, , , dim]}}}) {
  const filters = {};
  for (const [name, w] of Object.entries(weights))
    if (w.shape.length == 4) filters[name] = packed(w);

  const named = (name, layer) => layer(weights[`${name}.weight`], weights[`${name}.bias`]);
  const conv = (name, x) => named(name, (w, b) =>
    convolve(x, filters[`${name}.weight`], b.data, w.shape[3]));
  const norm = (name, x) => named(name, (w, b) => normalise(x, w.data, b.data));
  const mix = (name, x) => named(name, (w, b) => linear(x, w, b));

  function block(name, x, time) {
    const h = conv(`${name}.conv1`, norm(`${name}.norm1`, x)), n = h.h*h.w;
    mix(`${name}.time_proj`, time.map(silu)).forEach((v, c) => {
      for (let i = c*n; i < c*n + n; i++) h.data[i] += v;
    });
    const out = conv(`${name}.conv2`, norm(`${name}.norm2`, h));
    const skip = weights[`${name}.skip.weight`] ? conv(`${name}.skip`, x) : x;
    for (let i = 0; i < out.data.length; i++) out.data[i] += skip.data[i];
    return out;
  }

  return (x, index) => {                                 // planes and a whole number to numbers
    const time = mix('time_embed.mlp.3', mix('time_embed.mlp.0', waves(index, dim)).map(silu));
    const h1 = block('down1', conv('input_conv', x), time);
    const h2 = block('down2', halved(h1), time);
    const h3 = block('down3', halved(h2), time);
    let h = block('middle', halved(h3), time);
    h = block('up3', stacked(doubled(h), h3), time);
    h = block('up2', stacked(doubled(h), h2), time);
    h = block('up1', stacked(doubled(h), h1), time);
    return conv('output_conv', h).data;
  };
}

// # Noise
// Bits are a function of a counter (Philox 4×64, ten rounds), normals a function of bits (Box &
// Muller), of operations that float32 rounds alike everywhere: image i of a seed gets the very
// numbers that Python's keyed_noise gives it.
const low64 = n => BigInt.asUintN(64, n);

function philox(seed, count) {                           // four words of 64 bits
  let [a, b, c, d] = [0n, 64n, 128n, 192n].map(k => low64(count >> k)), k0 = seed, k1 = 0n;
  for (let round = 0; round < 10; round++) {
    const p = a*0xD2E7470EE14C6C93n, q = c*0xCA5A826395121157n;
    [a, b, c, d] = [(q >> 64n) ^ b ^ k0, low64(q), (p >> 64n) ^ d ^ k1, low64(p)];
    k0 = low64(k0 + 0x9E3779B97F4A7C15n);
    k1 = low64(k1 + 0xBB67AE8584CAA73Bn);
  }
  return [a, b, c, d];
}

const f32 = Math.fround, LN2 = f32(Math.log(2));
const LOG = [-2.00000024, -.66652128, -.41300312].map(f32);
const SIN = [1.11072075, -.114191286, .0035214019, -5.0847353e-5].map(f32);
const both = new ArrayBuffer(4), asFloat = new Float32Array(both), asInt = new Int32Array(both);
const bitsOf = v => { asFloat[0] = v; return asInt[0]; };
const floatOf = bits => { asInt[0] = bits; return asFloat[0]; };

function series(coefficients, x) {                       // x·(c₀ + c₁x² + …), Horner
  const z = f32(x*x);
  return f32(coefficients.reduceRight((p, c) => f32(f32(p*z) + c))*x);
}

function boxMuller(w1, w2) {                             // 32 and 16 bits to two normals
  const g = f32(f32(w1 | 1)**2), bits = bitsOf(g);       // g is m·2^(62 − n)
  const n = (0x3F3504F3 + (62 << 23) + 2**23 - 1 - bits) >> 23;
  const m = floatOf(bits + (n << 23) - (62 << 23));
  const r = f32(Math.sqrt(f32(f32(n*LN2) + series(LOG, f32(f32(m - 1)/f32(m + 1))))));
  const h = series(SIN, f32((w2 + .5)/2**15)), v = f32(2 - f32(h*h));
  const z1 = f32(r*f32(v - 1));
  return [w1 < 0 ? -z1 : z1, f32(r*f32(h*f32(Math.sqrt(v))))];
}

function keyedNoise(seed, image, numbers, t = 0) {       // t = 0: the starting noise
  const blocks = 3*Math.ceil(numbers/32), pairs = 16*blocks/3;
  const words = new BigUint64Array(4*blocks), z = new Float32Array(2*pairs);
  const first = (BigInt(t) << 128n) + BigInt(image)*BigInt(blocks);
  for (let j = 0; j < blocks; j++) words.set(philox(seed, first + BigInt(j)), 4*j);
  const w1 = new Int32Array(words.buffer), w2 = new Int16Array(words.buffer);
  for (let j = 0; j < pairs; j++) [z[j], z[pairs + j]] = boxMuller(w1[j], w2[2*pairs + j]);
  return z.subarray(0, numbers);
}

// # Plan
// The levels to visit: n of them, evenly from T down to 1 (linspace) or to T/n (trailing).
const SPACINGS = {
  linspace: (T, n) => k => n == 1 ? T : k == 0 ? 1 : T + (n - 1 - k)*((1 - T)/(n - 1)),
  trailing: (T, n) => k => T - (n - 1 - k)*(T/n),
};

function levelsOf(T, n, spacing) {                       // whole numbers, no two alike, T first
  const level = SPACINGS[spacing](T, n), levels = [];
  for (let k = 0; k < n; k++)
    levels.push(Math.max(Math.floor(level(k) + .5), k ? levels[k - 1] + 1 : 1));
  return levels.map((t, k) => Math.min(t, T - (n - 1 - k))).reverse();
}

const planOf = (levels, abar) => levels.map((t, k) => {
  const s = levels[k + 1] ?? 0;
  return {t, s, abar_t: abar[t], abar_s: abar[s]};
});

// # Denoiser
// What the network says, as a pair that explains x_t = √ᾱ x̂₀ + √(1−ᾱ) ε̂, with x̂₀ in [−1, 1].
const blend = (a, x, b, y) => x.map((v, i) => a*v + b*y[i]);          // ax + by

const X0_OF = {                                          // x̂₀ from x_t and what is predicted
  eps: (x, out, a, b) => blend(1/a, x, -b/a, out),
  x0: (x, out) => out,
  v: (x, out, a, b) => blend(a, x, -b, out),
  eps_capped: (x, out, a, b) => blend(a + b*b/Math.max(a, .2), x, -b/Math.max(a, .2), out),
};

const denoiser = (net, {record: {predicts, shape: [c, h, w]}}) => (x, {t, abar_t}) => {
  const a = Math.sqrt(abar_t), b = Math.sqrt(1 - abar_t), out = net(planes(c, h, w, x), t - 1);
  const x0 = X0_OF[predicts](x, out, a, b).map(v => Math.min(Math.max(v, -1), 1));
  return [x0, blend(1/b, x, -a/b, x0)];
};

// # Steps
// A sampler is what it does in one step, from level t to level s: the pair (x̂₀, ε̂) at x_t gives
// x_s. z() is fresh noise, and memory what the step before left.
const STEPS = {
  ddim(den, row, x) {                                    // Song et al. 2021a, eq. 12
    const [x0, eps] = den(x, row);
    return [blend(Math.sqrt(row.abar_s), x0, Math.sqrt(1 - row.abar_s), eps), x0];
  },
  ddpm(den, row, x, z) {                                 // Ho et al. 2020, algorithm 2
    const {abar_t, abar_s} = row, [x0] = den(x, row), a = abar_t/abar_s;
    const mean = blend(Math.sqrt(abar_s)*(1 - a)/(1 - abar_t), x0,
      Math.sqrt(a)*(1 - abar_s)/(1 - abar_t), x);
    const variance = (1 - abar_s)/(1 - abar_t)*(1 - a);
    return [variance ? blend(1, mean, Math.sqrt(variance), z()) : mean, x0];
  },
  adams(den, row, x, z, memory) {                        // Xue et al. 2023, with two values
    const {abar_t, abar_s} = row, [x0, eps] = den(x, row), left = {abar: abar_t, x0};
    if (abar_s == 1) return [x0, x0, left];
    const c = memory ? weightOfLast(row, memory.abar) : 0;
    const mean = c ? blend(1 - c, x0, c, memory.x0) : x0;
    const kept = sigma(abar_s)/sigma(abar_t), b = Math.sqrt(1 - abar_t);
    const old = c ? blend(1/b, x, -Math.sqrt(abar_t)/b, mean) : eps;
    const noise = blend(kept, old, Math.sqrt(1 - kept**2), z());
    return [blend(Math.sqrt(abar_s), mean, Math.sqrt(1 - abar_s), noise), x0, left];
  },
  consistency(den, row, x, z) {                          // Song et al. 2023a, algorithm 1
    const {abar_s} = row, [x0] = den(x, row);
    return [abar_s == 1 ? x0 : blend(Math.sqrt(abar_s), x0, Math.sqrt(1 - abar_s), z()), x0];
  },
};

const sigma = abar => Math.sqrt((1 - abar)/abar);        // noise beside a signal of weight 1

// The share of the last x̂₀ in the mean of a line through the last two. The line is straight in
// θ = arctan σ, the mean over the step has weight σ⁻³, and its integral is known.
function weightOfLast({abar_t, abar_s}, abar_last) {
  const t = sigma(abar_t), s = sigma(abar_s), theta = Math.atan(t);
  const F = u => Math.atan(u)*(1 + u**-2) + 1/u;
  const mean = (F(s) - F(t))/(s**-2 - t**-2);
  const c = (mean - theta)/(Math.atan(sigma(abar_last)) - theta);
  return Math.abs(c) + Math.abs(1 - c) > 7 ? 0 : c;      // too far: the newest value alone
}

// # Loop
// Every sampler: go through the plan, row by row, and say what is known at each level.
function* sampleSteps(den, plan, x, step, noise) {
  let memory;
  for (const row of plan) {
    const [xs, x0, left] = step(den, row, x, () => noise(row.t), memory);
    yield {t: row.t, x, x0};
    [x, memory] = [xs, left];
  }
  yield {t: 0, x, x0: x};
}

// A run of one image: its seed and number say which, sampler and steps say how.
function drawing(model, {seed, sampler, steps}, image) {
  const {record: {shape: [c, h, w], student}, abar} = model, T = abar.length - 1;
  const spacing = sampler == 'adams' ? 'trailing' : 'linspace';
  const levels = student ? student.plans.find(plan => plan.length == steps)
    : levelsOf(T, steps, spacing);
  const noise = t => keyedNoise(BigInt(seed), image, c*h*w, t);
  const den = denoiser(model.net ??= unet(model), model);
  return sampleSteps(den, planOf(levels, abar), noise(0), STEPS[sampler], noise);
}

// # Worker
// A hand that draws some of the images, all of them one level at a time, and tells each state.
const models = {};

function work({data: {run, name, bytes, how, images}}) {
  const model = models[name] ??= readCheckpoint(bytes);
  const drawings = images.map(image => drawing(model, how, image));
  for (let k = 0; k <= how.steps; k++)
    drawings.forEach((states, j) => {
      const began = performance.now(), state = states.next().value;
      postMessage({run, image: images[j], k, ...state, took: performance.now() - began});
    });
}

if (typeof WorkerGlobalScope != 'undefined') onmessage = work;
