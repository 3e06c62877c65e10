//! Arithmetic on small dense blocks. Every sum runs in one order, whatever the machine: the innermost loops go over
//! independent outputs, so the compiler may use vectors without changing a bit.

/// `output[r] = bias + input[r] * weight` for every row: K inputs, N outputs, `weight` K x N.
pub(crate) fn affine<const K: usize, const N: usize>(input: &[f32], weight: &[f32], bias: &[f32], output: &mut [f32]) {
    let weight = rows::<N>(weight);
    let bias: &[f32; N] = bias.try_into().expect("one bias an output");
    for (input, output) in rows::<K>(input).iter().zip(rows_mut::<N>(output)) {
        let mut sum = *bias;
        for (value, weight) in input.iter().zip(weight) {
            add_scaled(&mut sum, *value, weight);
        }
        *output = sum;
    }
}

/// Adds the gradients of [`affine`]'s weight and bias, given that of its output.
pub(crate) fn affine_gradient<const K: usize, const N: usize>(
    input: &[f32],
    output_gradient: &[f32],
    weight_gradient: &mut [f32],
    bias_gradient: &mut [f32],
) {
    let weight_gradient = rows_mut::<N>(weight_gradient);
    let bias_gradient: &mut [f32; N] = bias_gradient.try_into().expect("one bias an output");
    for (input, gradient) in rows::<K>(input).iter().zip(rows::<N>(output_gradient)) {
        for (value, weight_gradient) in input.iter().zip(weight_gradient.iter_mut()) {
            add_scaled(weight_gradient, *value, gradient);
        }
        add_scaled(bias_gradient, 1.0, gradient);
    }
}

/// The gradient of [`affine`]'s input. `transposed` is the weight with rows and columns exchanged, N x K.
pub(crate) fn affine_input_gradient<const K: usize, const N: usize>(
    output_gradient: &[f32],
    transposed: &[f32],
    input_gradient: &mut [f32],
) {
    let transposed = rows::<K>(transposed);
    for (gradient, input_gradient) in rows::<N>(output_gradient).iter().zip(rows_mut::<K>(input_gradient)) {
        input_gradient.fill(0.0);
        for (value, weight) in gradient.iter().zip(transposed) {
            add_scaled(input_gradient, *value, weight);
        }
    }
}

/// Exchanges rows and columns of a K x N matrix.
pub(crate) fn transpose<const K: usize, const N: usize>(matrix: &[f32], transposed: &mut [f32]) {
    for (k, row) in rows::<N>(matrix).iter().enumerate() {
        for (n, value) in row.iter().enumerate() {
            transposed[n * K + k] = *value;
        }
    }
}

/// Writes, for every pixel of a SIDE x SIDE image with C channels, the 3 x 3 pixels around it, zero beyond the edge: a row of
/// 9 C values a pixel, so that a convolution is [`affine`] on rows.
pub(crate) fn patches<const SIDE: usize, const C: usize>(image: &[f32], output: &mut [f32]) {
    for (pixel, patch) in output.chunks_exact_mut(9 * C).enumerate() {
        for (part, neighbour) in patch.chunks_exact_mut(C).zip(neighbours::<SIDE>(pixel)) {
            match neighbour {
                Some(neighbour) => part.copy_from_slice(&image[neighbour * C..][..C]),
                None => part.fill(0.0),
            }
        }
    }
}

/// The gradient of the image behind [`patches`]: each pixel gathers what the patches that hold it got.
pub(crate) fn patches_gradient<const SIDE: usize, const C: usize>(patches: &[f32], image: &mut [f32]) {
    image.fill(0.0);
    for (pixel, patch) in patches.chunks_exact(9 * C).enumerate() {
        for (part, neighbour) in patch.chunks_exact(C).zip(neighbours::<SIDE>(pixel)) {
            let Some(neighbour) = neighbour else { continue };
            for (sum, value) in image[neighbour * C..][..C].iter_mut().zip(part) {
                *sum += value;
            }
        }
    }
}

/// The 3 x 3 pixels around a pixel, row by row; none beyond the edge.
fn neighbours<const SIDE: usize>(pixel: usize) -> impl Iterator<Item = Option<usize>> {
    let (y, x) = (pixel / SIDE, pixel % SIDE);
    (0..9).map(move |offset| {
        // One more than the neighbour's place, so that nothing goes below 0.
        let (y, x) = (y + offset / 3, x + offset % 3);
        ((1..=SIDE).contains(&y) && (1..=SIDE).contains(&x)).then(|| (y - 1) * SIDE + x - 1)
    })
}

/// The largest of each 2 x 2 block of a SIDE x SIDE image with C channels, or 0 if none is positive: pooling and
/// rectification in one. `chosen` says which of the four it was; 4 for none.
pub(crate) fn rectify_and_pool<const SIDE: usize, const C: usize>(
    image: &[f32],
    output: &mut [f32],
    chosen: &mut [u8],
) {
    for (block, (output, chosen)) in output.chunks_exact_mut(C).zip(chosen.chunks_exact_mut(C)).enumerate() {
        output.fill(0.0);
        chosen.fill(4);
        for corner in 0..4_u8 {
            let start = block_pixel::<SIDE>(block, corner) * C;
            for ((output, chosen), value) in output.iter_mut().zip(chosen.iter_mut()).zip(&image[start..][..C]) {
                if *value > *output {
                    (*output, *chosen) = (*value, corner);
                }
            }
        }
    }
}

/// The gradient of the image behind [`rectify_and_pool`].
pub(crate) fn rectify_and_pool_gradient<const SIDE: usize, const C: usize>(
    output_gradient: &[f32],
    chosen: &[u8],
    image_gradient: &mut [f32],
) {
    for (block, (gradient, chosen)) in output_gradient.chunks_exact(C).zip(chosen.chunks_exact(C)).enumerate() {
        for corner in 0..4_u8 {
            let start = block_pixel::<SIDE>(block, corner) * C;
            for ((image, value), chosen) in image_gradient[start..][..C].iter_mut().zip(gradient).zip(chosen) {
                *image = if *chosen == corner { *value } else { 0.0 };
            }
        }
    }
}

/// The pixel at a corner (0 to 3, row by row) of a 2 x 2 block.
fn block_pixel<const SIDE: usize>(block: usize, corner: u8) -> usize {
    let (y, x) = (block / (SIDE / 2), block % (SIDE / 2));
    (2 * y + usize::from(corner / 2)) * SIDE + 2 * x + usize::from(corner % 2)
}

fn add_scaled<const N: usize>(sum: &mut [f32; N], factor: f32, values: &[f32; N]) {
    for (sum, value) in sum.iter_mut().zip(values) {
        *sum += factor * value;
    }
}

fn rows<const N: usize>(values: &[f32]) -> &[[f32; N]] {
    values.as_chunks().0
}

fn rows_mut<const N: usize>(values: &mut [f32]) -> &mut [[f32; N]] {
    values.as_chunks_mut().0
}
