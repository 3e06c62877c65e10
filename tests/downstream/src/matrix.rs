//! A framework's tensor, as far as this crate needs one.

/// A row-major matrix, or a flat row of values.
pub struct Matrix {
    shape: Vec<usize>,
    columns: usize,
    values: Vec<f32>,
}

impl Matrix {
    pub fn filled(rows: usize, columns: usize, value: f32) -> Self {
        Self { shape: vec![rows, columns], columns, values: vec![value; rows * columns] }
    }

    /// The same values in one dimension.
    pub fn flattened(self) -> Self {
        Self { shape: vec![self.values.len()], ..self }
    }

    pub fn at(&self, row: usize, column: usize) -> f32 {
        self.values[row * self.columns + column]
    }

    pub fn at_mut(&mut self, row: usize, column: usize) -> &mut f32 {
        &mut self.values[row * self.columns + column]
    }
}

/// For gradients: kolo reduces them where they are.
impl kolo::Tensor for Matrix {
    type Element = f32;

    fn shape(&self) -> Vec<usize> {
        self.shape.clone()
    }

    fn as_slice(&self) -> &[f32] {
        &self.values
    }

    fn as_mut_slice(&mut self) -> &mut [f32] {
        &mut self.values
    }
}

/// For parameters: kolo broadcasts and updates them.
impl AsMut<[f32]> for Matrix {
    fn as_mut(&mut self) -> &mut [f32] {
        &mut self.values
    }
}
